-- What hangs on a database by its OID and would stay with the old one after a rename, or forbid it.
SELECT 'logical replication slot' AS kind, slot_name::text AS name
FROM pg_replication_slots WHERE database = %(name)s
UNION ALL
SELECT 'subscription', subname::text
FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = %(name)s)
UNION ALL
SELECT 'prepared transaction', format('of %%s since %%s', owner, prepared)
FROM pg_prepared_xacts WHERE database = %(name)s
ORDER BY 1, 2
