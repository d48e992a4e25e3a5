-- Rows written since a point: those whose writer is at or after `since`, the oldest transaction that was running then.
-- Row versions carry 32 bits of it; the difference modulo 2^32 is right for 2^31 transactions, and an older row may
-- only be read once too often. ACCESS SHARE; one sequential scan of the table (no index knows this), nothing is written.
SELECT {key}::bigint, {number}::text, {stored}::text, {blind_index}
FROM {source}
WHERE ((xmin::text::bigint - %(since)s::bigint) & 4294967295) < 2147483648
ORDER BY {key}
