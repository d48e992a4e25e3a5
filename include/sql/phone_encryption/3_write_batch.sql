-- One batch of the backfill: the rows and the cursor in one statement, so in one transaction.
-- Lock: ROW EXCLUSIVE, and the rows of the batch until it commits, about 30 ms; lock_timeout ends it before anybody
-- waits longer. Compare and set: a row whose number has changed since it was read, or that has a ciphertext by now, is
-- left to the pass that finds it as it is then. Byte by byte ("C"), whatever the column calls equal.
WITH written AS (
    UPDATE {relation} AS u SET {ciphertext} = v.ciphertext, {blind_index} = v.blind_index
    FROM unnest(%(key)s::bigint[], %(old)b::text[], %(ciphertext)b::text[], %(blind_index)b::bytea[])
        AS v (key, old, ciphertext, blind_index)
    WHERE u.{key} = v.key AND u.{key} BETWEEN %(first)s AND %(done_to)s  -- one scan of the key's range
      AND u.{plaintext}::text COLLATE "C" = v.old AND u.{ciphertext} IS NULL
    RETURNING 1
), counted AS (
    SELECT count(*) AS written FROM written
)
UPDATE {state}.progress
SET done_to = %(done_to)s, rows = rows + %(rows)s, written = progress.written + counted.written,
    refused = refused + %(rows)s - counted.written
FROM counted
WHERE subject = %(subject)s AND work = %(work)s AND pass_number = %(pass_number)s AND low = %(low)s AND high = %(high)s
RETURNING counted.written
