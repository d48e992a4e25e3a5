-- Step 5, the point of no return: the plaintext column goes, and the trigger that watched it. In one transaction with
-- 5d_shim.sql. Lock: ACCESS EXCLUSIVE for milliseconds; dropping a column reads no row and leaves its values in the file
-- until 5f_purge.sql.
DROP TRIGGER IF EXISTS {stale_trigger} ON {relation};
DROP FUNCTION IF EXISTS {stale_function}();
ALTER TABLE {relation} DROP COLUMN {plaintext};
