-- Every relation whose content or definition a backup must hold, in name order.
-- Kinds: r table, p partitioned table (its rows live in its partitions), m materialised view, f foreign table.
-- Members of extensions are left to CREATE EXTENSION, except configuration tables that the extension marks for dump.
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relispopulated AS populated
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_depend AS d
    ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
LEFT JOIN pg_extension AS e ON e.oid = d.refobjid
WHERE c.relkind IN ('r', 'p', 'm', 'f')
  AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND n.nspname !~ '^pg_(temp|toast_temp)_'
  AND (e.oid IS NULL OR c.oid = ANY (e.extconfig))
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
