-- Step 5, when reads are of the ciphertext: the plaintext may be left out, for application versions that do not know it.
-- Its UNIQUE constraint is dropped beside this, by name; what was there is in {state}.relaxed, for the undo.
-- Lock: ACCESS EXCLUSIVE for milliseconds; nothing is read. The blind index keeps numbers unique.
ALTER TABLE {relation} DROP CONSTRAINT IF EXISTS {complete_check}, DROP CONSTRAINT IF EXISTS {not_null_check},
    ALTER COLUMN {plaintext} DROP NOT NULL
