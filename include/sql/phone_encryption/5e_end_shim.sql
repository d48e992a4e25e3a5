-- Step 5, when every version uses the final name: the table has its own again. Two locks, each for milliseconds; whoever
-- holds one holds both, so the second is there at once, and neither is waited for longer than 0.1 s.
SET LOCAL lock_timeout = '100ms';
DROP VIEW {relation};
ALTER TABLE {base_relation} RENAME TO {table};
