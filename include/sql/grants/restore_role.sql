-- The restore role: makes databases and hands restored objects back to their owners, which only a member of those
-- roles may do. Run as a superuser, connected to the database that is backed up, after backup_role.sql:
--   psql -f include/sql/grants/restore_role.sql service=admin
-- then restore_functions.sql, and \password payme_db_restore. Its connection belongs to restore workers only (queue
-- `restore`).
CREATE ROLE payme_db_restore LOGIN CREATEDB NOSUPERUSER NOCREATEROLE;
-- No row reaches the server's log: neither DETAIL and CONTEXT nor the failing statement.
ALTER ROLE payme_db_restore SET log_error_verbosity = 'terse';
ALTER ROLE payme_db_restore SET log_min_error_statement = 'panic';
-- Run this part again when a new role comes to own something.
DO $$
DECLARE
    owner regrole;
BEGIN
    FOR owner IN
        SELECT datdba::regrole FROM pg_database WHERE datname = current_database()
        UNION SELECT nspowner::regrole FROM pg_namespace
        UNION SELECT relowner::regrole FROM pg_class
        UNION SELECT proowner::regrole FROM pg_proc
        UNION SELECT typowner::regrole FROM pg_type
        UNION SELECT lomowner::regrole FROM pg_largeobject_metadata
    LOOP
        IF NOT (SELECT rolsuper FROM pg_roles WHERE oid = owner) AND owner <> 'pg_database_owner'::regrole THEN
            EXECUTE format('GRANT %s TO payme_db_restore', owner);
        END IF;
    END LOOP;
END
$$;
