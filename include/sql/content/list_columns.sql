-- Columns of all dumped tables with the base type below any domain: what the content hash must know of each.
WITH RECURSIVE base AS (
    SELECT t.oid AS type_oid, t.oid AS base_oid, t.typtype, t.typbasetype FROM pg_type AS t
    UNION ALL
    SELECT b.type_oid, t.oid, t.typtype, t.typbasetype
    FROM base AS b
    JOIN pg_type AS t ON t.oid = b.typbasetype
    WHERE b.typtype = 'd'
)
SELECT a.attrelid AS oid, a.attname AS name,
       CASE WHEN bn.nspname = 'pg_catalog' THEN bt.typname::text END AS builtin_type,
       bt.typtype = 'e' AS is_enum,
       coalesce(NOT co.collisdeterministic, false) AS equality_hides_spelling
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind = 'r'
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN base AS b ON b.type_oid = a.atttypid AND b.typtype <> 'd'
JOIN pg_type AS bt ON bt.oid = b.base_oid
JOIN pg_namespace AS bn ON bn.oid = bt.typnamespace
LEFT JOIN pg_collation AS co ON co.oid = a.attcollation
WHERE a.attnum > 0 AND NOT a.attisdropped
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY a.attrelid, a.attname COLLATE "C"
