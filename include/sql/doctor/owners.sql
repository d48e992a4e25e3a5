-- Who owns anything in this database, as include/sql/grants/restore_role.sql grants it: a restore hands it back.
SELECT DISTINCT pg_get_userbyid(owner)::text
FROM (
    SELECT datdba FROM pg_database WHERE datname = current_database()
    UNION SELECT nspowner FROM pg_namespace
    UNION SELECT relowner FROM pg_class
    UNION SELECT proowner FROM pg_proc
    UNION SELECT typowner FROM pg_type
    UNION SELECT lomowner FROM pg_largeobject_metadata
) AS owners (owner)
JOIN pg_roles ON pg_roles.oid = owner
WHERE NOT rolsuper AND rolname <> 'pg_database_owner'
ORDER BY 1
