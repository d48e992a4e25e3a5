-- Rows of a range of keys, for the comparison. ACCESS SHARE until the reader's transaction ends, as any SELECT takes; it
-- stops VACUUM FULL and DDL, no reader and no writer. The source is the table, or its base while the shim view has its
-- name; `number` is NULL once the plaintext column is gone.
SELECT {key}::bigint, {number}::text, {stored}::text, {blind_index}
FROM {source}
WHERE {key} > %(low)s AND {key} <= %(high)s
ORDER BY {key}
