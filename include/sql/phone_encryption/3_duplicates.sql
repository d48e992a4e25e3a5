-- Ids of rows that have one value of a column; equal blind indexes are equal numbers, however they are written. Asked
-- before a UNIQUE index is built: one that fails leaves an invalid index that refuses writes all the same.
SELECT array_agg({key}::bigint ORDER BY {key}) FROM {relation}
WHERE {column} IS NOT NULL
GROUP BY {column} HAVING count(*) > 1
ORDER BY min({key}) LIMIT 20
