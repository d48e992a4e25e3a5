-- Rows with a number and no ciphertext, or no blind index: how many, and the first ids. Reads the whole table, as any
-- SELECT does.
SELECT (SELECT count(*) FROM {relation} WHERE {plaintext} IS NOT NULL AND ({ciphertext} IS NULL OR {blind_index} IS NULL)),
       ARRAY(
           SELECT {key}::bigint FROM {relation}
           WHERE {plaintext} IS NOT NULL AND ({ciphertext} IS NULL OR {blind_index} IS NULL) ORDER BY {key} LIMIT 50
       )
