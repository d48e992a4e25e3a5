-- Step 3: every row is read and checked, the planner and later steps may rely on it.
-- Lock: SHARE UPDATE EXCLUSIVE while the table is read, which stops no reader and no writer.
ALTER TABLE {relation} VALIDATE CONSTRAINT {check}
