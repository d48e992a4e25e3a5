-- Last: the valid check proves it, so nothing is read. Lock: ACCESS EXCLUSIVE for milliseconds.
ALTER TABLE {relation} ALTER COLUMN {plaintext} SET NOT NULL;
ALTER TABLE {relation} DROP CONSTRAINT {not_null_check};
