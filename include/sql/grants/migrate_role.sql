-- The migrate role: changes tables as their owner and watches what that does to others. Run as a superuser, connected to
-- the database whose column is to be encrypted:
--   psql -f include/sql/grants/migrate_role.sql service=admin
-- then set its password with \password payme_db_migrate. Its connection belongs to migration workers only (queue
-- `migration`). Run it again when the table gets another owner, and after an upgrade of payme-ops.
-- pg_monitor: replica lag, WAL rate, lock waiters, autovacuum, which version of the application is connected.
-- session_replication_role: the backfill does not fire the table's own triggers, or it would move every updated_at.
-- CREATE, for the owner that each step acts as, and only where it lacks it. On the database: the steps remember in a
-- schema of their own, payme_migration, what an undo needs; undoing the first step drops it, doing it again makes it
-- again. On the table's schema: a function, an index and for a while a view. Both may be revoked when it is over.
DO $$
DECLARE
    owner name;
    home name;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'payme_db_migrate') THEN
        CREATE ROLE payme_db_migrate LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
    SELECT pg_get_userbyid(relowner), nspname INTO owner, home
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = 'public.users'::regclass;
    EXECUTE format('GRANT %I TO payme_db_migrate', owner);
    IF NOT has_database_privilege(owner, current_database(), 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), owner);
    END IF;
    IF NOT has_schema_privilege(owner, home, 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON SCHEMA %I TO %I', home, owner);
    END IF;
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE 'GRANT SET ON PARAMETER session_replication_role TO payme_db_migrate';
    END IF;
END
$$;
GRANT pg_monitor TO payme_db_migrate;
-- No row reaches the server's log: neither DETAIL and CONTEXT nor the failing statement.
ALTER ROLE payme_db_migrate SET log_error_verbosity = 'terse';
ALTER ROLE payme_db_migrate SET log_min_error_statement = 'panic';
