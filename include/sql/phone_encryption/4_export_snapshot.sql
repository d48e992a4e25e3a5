-- The snapshot that all readers share, and where it stands: which transactions it sees (drift begins there), the WAL, and
-- the last key in it. Held while the readers read: until it ends, vacuum keeps what was deleted since.
SELECT pg_export_snapshot(), pg_current_snapshot()::text, pg_current_wal_lsn()::text,
       (SELECT coalesce(max({key})::bigint, %(lowest)s) FROM {source}),
       (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass(%(source)s))
