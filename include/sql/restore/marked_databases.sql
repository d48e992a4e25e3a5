-- Databases that a restore made or put aside, by the marker in their comment.
SELECT datname::text AS name, shobj_description(oid, 'pg_database') AS comment
FROM pg_database
WHERE shobj_description(oid, 'pg_database') LIKE 'payme-ops {%'
ORDER BY 1
