-- The next rows of a range that have a number and no ciphertext. ACCESS SHARE, as any SELECT. By key, so that a batch
-- costs the same at the table's beginning and at its end.
SELECT {key}::bigint, {plaintext}::text FROM {relation}
WHERE {key} > %(after)s AND {key} <= %(high)s AND {plaintext} IS NOT NULL AND {ciphertext} IS NULL
ORDER BY {key} LIMIT %(size)s
