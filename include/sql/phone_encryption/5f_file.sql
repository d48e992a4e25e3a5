-- The table's file and how large it is, with its TOAST and indexes: VACUUM FULL needs as much again until it ends. And
-- where the WAL is: pages with the plaintext are in no later segment than the one in which the old file was given up.
SELECT pg_relation_filenode(oid)::bigint AS file, pg_relation_size(oid) AS table_bytes,
       pg_total_relation_size(oid) AS total_bytes, pg_walfile_name(pg_current_wal_lsn()) AS wal_segment
FROM pg_class WHERE oid = to_regclass(%(relation)s)
