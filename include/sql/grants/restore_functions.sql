-- What a swap needs beside the restore role itself: to end sessions, since nobody may be connected to a database that is
-- renamed; and a database's settings for single roles (ALTER ROLE … IN DATABASE … SET), or that only a superuser may
-- make. Run as a superuser, connected to the maintenance database that the connection payme_db_restore names, after
-- restore_role.sql, and again after an upgrade of payme-ops:
--   psql -f include/sql/grants/restore_functions.sql "service=admin dbname=postgres"
-- Not in the database that is backed up: a dump would carry it along.
GRANT pg_signal_backend TO payme_db_restore;
CREATE SCHEMA IF NOT EXISTS payme_restore;
GRANT USAGE ON SCHEMA payme_restore TO payme_db_restore;

-- Give database `target` the settings of `source`, and none else. Only between two databases whose owners' rights the
-- caller has: it can do nothing to a database that is not the caller's already.
CREATE OR REPLACE FUNCTION payme_restore.copy_settings(source name, target name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    setting record;
    scope text;
BEGIN
    IF (SELECT count(*) FROM pg_database WHERE datname IN (source, target) AND pg_has_role(session_user, datdba, 'USAGE')) <> 2
    THEN
        RAISE EXCEPTION '% does not own both databases', session_user USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR scope IN
        SELECT CASE setrole WHEN 0 THEN format('DATABASE %I', target)
                            ELSE format('ROLE %I IN DATABASE %I', pg_get_userbyid(setrole), target) END
        FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = target)
    LOOP
        EXECUTE format('ALTER %s RESET ALL', scope);
    END LOOP;
    FOR setting IN
        SELECT CASE setrole WHEN 0 THEN format('DATABASE %I', target)
                            ELSE format('ROLE %I IN DATABASE %I', pg_get_userbyid(setrole), target) END AS scope,
               split_part(entry, '=', 1) AS name,
               substr(entry, strpos(entry, '=') + 1) AS value
        FROM pg_db_role_setting, unnest(setconfig) AS entry
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = source)
    LOOP
        EXECUTE format(
            'ALTER %s SET %s TO %s',
            setting.scope,
            (SELECT string_agg(quote_ident(part), '.') FROM unnest(string_to_array(setting.name, '.')) AS part),
            CASE WHEN setting.name IN ('search_path', 'temp_tablespaces', 'local_preload_libraries',
                                       'session_preload_libraries')
                 -- Lists of names are stored quoted; as one literal they would become one name.
                 THEN coalesce((SELECT string_agg(quote_literal(coalesce(replace(part[1], '""', '"'), part[2])), ', ')
                                FROM regexp_matches(setting.value, '"((?:[^"]|"")*)"|([^,\s"]+)', 'g') AS part), '''''')
                 ELSE quote_literal(setting.value)
            END);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION payme_restore.copy_settings(name, name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION payme_restore.copy_settings(name, name) TO payme_db_restore;
