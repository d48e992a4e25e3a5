-- One batch of the way back: decrypted numbers into the plaintext column, with the cursor, in one statement.
-- Lock: as in 3_write_batch.sql. Compare and set on the ciphertext. A fresh ciphertext goes with each: the trigger takes
-- a plaintext that comes alone for a stale ciphertext and would empty it.
WITH written AS (
    UPDATE {relation} AS u
    SET {plaintext} = v.plaintext, {ciphertext} = v.ciphertext, {blind_index} = v.blind_index
    FROM unnest(%(key)s::bigint[], %(old)b::text[], %(plaintext)b::text[], %(ciphertext)b::text[],
                %(blind_index)b::bytea[]) AS v (key, old, plaintext, ciphertext, blind_index)
    WHERE u.{key} = v.key AND u.{key} BETWEEN %(first)s AND %(done_to)s  -- one scan of the key's range
      AND u.{ciphertext} COLLATE "C" = v.old
    RETURNING 1
), counted AS (
    SELECT count(*) AS written FROM written
)
UPDATE {state}.progress
SET done_to = %(done_to)s, rows = rows + %(rows)s, written = progress.written + counted.written,
    refused = refused + %(rows)s - counted.written, faults = faults + %(faults)s, faulty = (faulty || %(faulty)s)[:50]
FROM counted
WHERE subject = %(subject)s AND work = %(work)s AND pass_number = %(pass_number)s AND low = %(low)s AND high = %(high)s
RETURNING counted.written
