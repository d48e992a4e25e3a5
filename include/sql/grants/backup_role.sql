-- The backup role: reads everything, writes nothing. Run as a superuser (or the provider's admin role), in psql:
--   psql -v database=payme -f include/sql/grants/backup_role.sql service=admin
-- then set its password with \password payme_db_read, so that it stands in no file or log.
-- pg_read_all_data: every table, view and sequence, also those made later by a migration.
-- BYPASSRLS: without it pg_dump stops at the first table with row-level security.
-- pg_read_all_stats: how busy the server is, while a release is watched.
-- lo_compat_privileges: large objects have owners, and pg_read_all_data does not reach them.
CREATE ROLE payme_db_read LOGIN BYPASSRLS NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 10;
GRANT pg_read_all_data TO payme_db_read;
GRANT pg_read_all_stats TO payme_db_read;
GRANT CONNECT ON DATABASE :"database" TO payme_db_read;
ALTER ROLE payme_db_read SET lo_compat_privileges = on;
-- No row reaches the server's log: neither DETAIL and CONTEXT nor the failing statement.
ALTER ROLE payme_db_read SET log_error_verbosity = 'terse';
ALTER ROLE payme_db_read SET log_min_error_statement = 'panic';
