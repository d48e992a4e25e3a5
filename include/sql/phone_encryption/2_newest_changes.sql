-- The rows written since a point, the newest first; how a point works, 4_changed_rows.sql says. ACCESS SHARE; one
-- sequential scan of the table.
SELECT {key}::bigint, {number}::text, {stored}::text, {blind_index}
FROM {source}
WHERE ((xmin::text::bigint - %(since)s::bigint) & 4294967295) < 2147483648
ORDER BY (xmin::text::bigint - %(since)s::bigint) & 4294967295 DESC, {key} DESC
LIMIT %(newest)s
