-- Rows with a ciphertext and no plaintext, which versions that do not know the plaintext have written: how many, and the
-- first ids. Before plaintext rules come back, the reverse backfill fills them.
SELECT (SELECT count(*) FROM {relation} WHERE {plaintext} IS NULL AND {ciphertext} IS NOT NULL),
       ARRAY(
           SELECT {key}::bigint FROM {relation} WHERE {plaintext} IS NULL AND {ciphertext} IS NOT NULL
           ORDER BY {key} LIMIT 50
       )
