-- The desk's own database (leases, evidence, alerts). Run as a superuser; then \password payme_ops and
-- python -m payme_ops ops-db migrate.
CREATE ROLE payme_ops LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE DATABASE payme_ops OWNER payme_ops;
