-- The table's file and how large it is, with its TOAST and indexes: VACUUM FULL needs as much again until it ends.
SELECT pg_relation_filenode(oid)::bigint AS file, pg_relation_size(oid) AS table_bytes,
       pg_total_relation_size(oid) AS total_bytes
FROM pg_class WHERE oid = to_regclass(%(relation)s)
