-- Undo of step 3's checks; the index is dropped CONCURRENTLY by itself. The format check is again one for new rows only.
-- Lock: ACCESS EXCLUSIVE for milliseconds.
ALTER TABLE {relation} DROP CONSTRAINT IF EXISTS {complete_check}, DROP CONSTRAINT {format_check};
ALTER TABLE {relation} ADD CONSTRAINT {format_check} CHECK ({ciphertext} ~ '^v[0-9]+:') NOT VALID;
