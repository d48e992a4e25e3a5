-- What stands in the way of the migration or is told before it, beside what step 1 asks of the table itself. Reads the
-- catalogues only. The table is the ordinary one of that name, or its base while the shim view has the name.
WITH users AS (
    SELECT pg_class.*
    FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname IN (%(table)s, %(base)s)
        AND relkind IN ('r', 'p')
    ORDER BY relname = %(table)s DESC
    LIMIT 1
)
SELECT
    users.relrowsecurity AND users.relforcerowsecurity AS hidden_from_owner,
    (
        SELECT coalesce(jsonb_object_agg(attname, format_type(atttypid, NULL)), '{{}}')
        FROM pg_attribute
        WHERE attrelid = users.oid AND attname = ANY (%(columns)s) AND attnum > 0 AND NOT attisdropped
    ) AS columns,
    ARRAY(
        SELECT 'constraint ' || conname FROM pg_constraint WHERE conrelid = users.oid AND conname = ANY (%(made)s)
        UNION ALL
        SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = users.oid AND tgname = ANY (%(made)s)
        UNION ALL
        SELECT 'relation ' || relname
        FROM pg_class
        WHERE relnamespace = users.relnamespace AND relname = ANY (%(made)s) AND oid <> users.oid
        UNION ALL
        SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = users.relnamespace AND proname = ANY (%(made)s)
        ORDER BY 1
    ) AS taken,
    ARRAY(
        SELECT tgname || CASE tgenabled WHEN 'A' THEN ' (always)' WHEN 'R' THEN ' (replica)' WHEN 'D' THEN ' (off)' ELSE '' END
        FROM pg_trigger
        WHERE tgrelid = users.oid AND NOT tgisinternal AND tgname <> ALL (%(made)s)
            AND tgtype & 16 <> 0  -- fires on UPDATE
        ORDER BY 1
    ) AS update_triggers,
    greatest(users.reltuples, 0)::bigint AS rows,
    pg_relation_size(users.oid) AS table_bytes,
    pg_indexes_size(users.oid) AS indexes_bytes,
    coalesce(
        (SELECT option_value::integer FROM pg_options_to_table(users.reloptions) WHERE option_name = 'fillfactor'), 100
    ) AS fillfactor
FROM users
