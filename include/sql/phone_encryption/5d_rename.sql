-- The ciphertext takes the plaintext's name. Whoever still takes it for plaintext is refused by the format check when it
-- writes; that none of those is left is what the fleet gate has made sure of.
ALTER TABLE {relation} RENAME COLUMN {ciphertext} TO {plaintext}
