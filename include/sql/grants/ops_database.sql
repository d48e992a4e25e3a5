-- The desk's own database (leases, evidence, alerts, approvals). Run as a superuser; then \password for each role, and
-- python -m payme_ops ops-db migrate, which gives the workers' roles what they may do (include/sql/ops/grants.sql).
-- Who connects as which: docs/secrets.md. payme_ops owns it, and asks people for all that is no release.
CREATE ROLE payme_ops LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE payme_ops_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE payme_ops_restore LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE payme_ops_release LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE DATABASE payme_ops OWNER payme_ops;
REVOKE CONNECT ON DATABASE payme_ops FROM PUBLIC;
GRANT CONNECT ON DATABASE payme_ops TO payme_ops_worker, payme_ops_restore, payme_ops_release;
GRANT payme_ops_worker TO payme_ops_restore, payme_ops_release;
-- It ends the session of a lease's holder that hangs, whoever that is (include/sql/ops/011_workers.sql).
GRANT payme_ops_worker, payme_ops_restore, payme_ops_release TO payme_ops;
