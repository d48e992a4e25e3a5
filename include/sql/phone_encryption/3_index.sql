-- Step 3, after the backfill: the index by which the application finds a number. UNIQUE if the plaintext was.
-- Lock: SHARE UPDATE EXCLUSIVE, which stops no reader and no writer; in autocommit. Waits for older transactions.
CREATE {unique} INDEX CONCURRENTLY {index} ON {relation} ({blind_index})
