-- The next so many keys after `low`: how many there are, and the last. Reads the primary key only.
SELECT count(*), max({key})::bigint
FROM (SELECT {key} FROM {source} WHERE {key} > %(low)s ORDER BY {key} LIMIT %(rows)s) AS next
