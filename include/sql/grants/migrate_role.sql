-- The migrate role: changes tables as their owner and watches what that does to others. Run as a superuser, connected to
-- the database whose column is to be encrypted:
--   psql -f include/sql/grants/migrate_role.sql service=admin
-- then set its password with \password payme_db_migrate. Its connection belongs to migration workers only (queue
-- `migration`).
-- pg_monitor: replica lag, WAL rate, lock waiters, autovacuum, which version of the application is connected.
-- session_replication_role: the backfill does not fire the table's own triggers, or it would move every updated_at.
CREATE ROLE payme_db_migrate LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
GRANT pg_monitor TO payme_db_migrate;
-- No row reaches the server's log: neither DETAIL and CONTEXT nor the failing statement.
ALTER ROLE payme_db_migrate SET log_error_verbosity = 'terse';
ALTER ROLE payme_db_migrate SET log_min_error_statement = 'panic';
DO $$
BEGIN
    EXECUTE format('GRANT %I TO payme_db_migrate',
                   (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'public.users'::regclass));
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE 'GRANT SET ON PARAMETER session_replication_role TO payme_db_migrate';
    END IF;
END
$$;
