-- What this role could not dump: relations without SELECT, sequences without SELECT, and tables whose row-level
-- security would hide rows (BYPASSRLS, superuser or ownership lifts it); and large objects, which have owners that
-- pg_read_all_data does not reach.
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
       CASE
           WHEN NOT has_schema_privilege(c.relnamespace, 'USAGE') THEN 'no USAGE on its schema'
           WHEN c.relkind = 'S' THEN 'no SELECT on the sequence'
           WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN 'no SELECT'
           ELSE 'row-level security hides rows'
       END AS why
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'S')
  AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND n.nspname !~ '^pg_(temp|toast_temp)_'
  AND CASE
          WHEN NOT has_schema_privilege(c.relnamespace, 'USAGE') THEN true
          WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'SELECT')
          WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN true
          ELSE c.relrowsecurity AND row_security_active(c.oid)
      END
UNION ALL
SELECT 'large objects', 'the role has no lo_compat_privileges'
WHERE current_setting('lo_compat_privileges') = 'off'
  AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  AND EXISTS (SELECT FROM pg_largeobject_metadata WHERE lomowner <> current_user::regrole)
ORDER BY 1
