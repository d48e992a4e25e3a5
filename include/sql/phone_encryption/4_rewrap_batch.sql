-- Ciphertexts of the same numbers, now bound to their rows. ROW EXCLUSIVE, and the rows written until the statement ends.
-- Compare and set: a row that has changed since it was read is left alone. A row that somebody else has locked is left,
-- too, for the next pass: nobody is waited for, so there is no deadlock.
WITH free AS (
    SELECT {key} FROM {relation} WHERE {key} = ANY (%(key)s::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {relation} AS u SET {ciphertext} = v.ciphertext, {blind_index} = v.blind_index
FROM unnest(%(key)s::bigint[], %(number)s::text[], %(old)s::text[], %(ciphertext)s::text[], %(blind_index)s::bytea[])
    AS v (key, number, old, ciphertext, blind_index)
JOIN free ON free.{key} = v.key
WHERE u.{key} = v.key AND u.{ciphertext} = v.old AND u.{plaintext}::text COLLATE "C" = v.number
