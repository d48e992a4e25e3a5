-- Undo of step 1, until the plaintext may be stale: the ciphertexts go, and what was remembered of them with them.
-- Lock: ACCESS EXCLUSIVE for milliseconds; dropping a column reads no row. Its checks and its index go along.
DROP TRIGGER IF EXISTS {stale_trigger} ON {relation};
DROP FUNCTION IF EXISTS {stale_function}();
ALTER TABLE {relation} DROP COLUMN IF EXISTS {ciphertext}, DROP COLUMN IF EXISTS {blind_index};
DROP SCHEMA IF EXISTS {state} CASCADE;
