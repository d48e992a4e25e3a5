-- How many rows there are of each key id, of a database whose plaintext was dropped. What is no key id is not shown.
-- ACCESS SHARE; one sequential scan of the table.
SELECT coalesce(substring({stored} FROM '^v[0-9]+:([a-z0-9]{{1,16}}):'), 'no ciphertext') AS key_id, count(*)
FROM {source} WHERE {stored} IS NOT NULL
GROUP BY 1 ORDER BY 1
