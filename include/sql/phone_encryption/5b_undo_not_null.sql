-- Undo of step 5's relaxing: NOT NULL comes back in three steps, since by itself it reads the whole table under
-- ACCESS EXCLUSIVE. First a check of new rows (ACCESS EXCLUSIVE for milliseconds); then 3_validate.sql.
ALTER TABLE {relation} ADD CONSTRAINT {not_null_check} CHECK ({plaintext} IS NOT NULL) NOT VALID
