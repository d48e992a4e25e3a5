-- Step 3, when nobody writes the plaintext alone any more: a number without its ciphertext is refused (23514); the
-- trigger stays, so a plaintext-only UPDATE is refused, too. An empty text is a number here, NULL is none.
-- Lock: ACCESS EXCLUSIVE for milliseconds: NOT VALID reads no row.
ALTER TABLE {relation} ADD CONSTRAINT {complete_check}
    CHECK ({plaintext} IS NULL OR {ciphertext} IS NOT NULL) NOT VALID
