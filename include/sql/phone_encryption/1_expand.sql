-- Step 1: two columns beside the plaintext, and a trigger that keeps them from going stale. One transaction.
-- Lock: ACCESS EXCLUSIVE for milliseconds: no default, so no row is rewritten; NOT VALID, so none is read.

-- An instance that knows the plaintext only would leave the old ciphertext beside a new number. The server has no key, so
-- it takes the ciphertext away, and the backfill's next pass finds the row. A write of both columns stays as it is.
-- Before the table is locked, since it takes longest.
CREATE FUNCTION {stale_function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.{plaintext} IS DISTINCT FROM OLD.{plaintext} AND NEW.{ciphertext} IS NOT DISTINCT FROM OLD.{ciphertext} THEN
        NEW.{ciphertext} := NULL;
        NEW.{blind_index} := NULL;
    END IF;
    RETURN NEW;
END $$;

-- text, not varchar(255): a ciphertext is longer than its plaintext by a length that the format may change.
-- No index yet: it would make every UPDATE of the backfill a write to the index, too.
ALTER TABLE {relation} ADD COLUMN {ciphertext} text, ADD COLUMN {blind_index} bytea,
    -- A plaintext that an old instance writes into the column is refused (23514), also after the column has its name.
    ADD CONSTRAINT {format_check} CHECK ({ciphertext} ~ '^v[0-9]+:') NOT VALID;
CREATE TRIGGER {stale_trigger} BEFORE UPDATE OF {plaintext} ON {relation}
    FOR EACH ROW EXECUTE FUNCTION {stale_function}();
