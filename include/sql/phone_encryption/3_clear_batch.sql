-- Undo of step 3, only where asked for: the next rows of a range lose their ciphertexts. The plaintext is not touched, so
-- the application keeps its numbers. Lock: ROW EXCLUSIVE and the batch's rows. Nobody's locked row is waited for.
WITH chosen AS (
    SELECT {key} AS key FROM {relation}
    WHERE {key} > %(after)s AND {key} <= %(high)s AND ({ciphertext} IS NOT NULL OR {blind_index} IS NOT NULL)
      AND {plaintext} IS NOT NULL
    ORDER BY {key} LIMIT %(size)s
    FOR NO KEY UPDATE SKIP LOCKED
), cleared AS (
    UPDATE {relation} AS u SET {ciphertext} = NULL, {blind_index} = NULL FROM chosen WHERE u.{key} = chosen.key
    RETURNING u.{key}::bigint AS key
)
SELECT count(*), max(key) FROM cleared
