-- Tables of the running database, each with the column that says when a row came to be, if it has one.
SELECT
    n.nspname AS schema,
    c.relname AS name,
    (
        SELECT a.attname
        FROM pg_attribute AS a
        WHERE a.attrelid = c.oid
            AND NOT a.attisdropped
            AND a.atttypid = 'timestamptz'::regtype
            AND a.attname IN ('created_at', 'inserted_at', 'received_at', 'booked_at', 'occurred_at')
        ORDER BY array_position(ARRAY['created_at', 'inserted_at', 'received_at', 'booked_at', 'occurred_at'], a.attname::text)
        LIMIT 1
    ) AS since
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY 1, 2
