-- Undo of steps 5a and 5b: the next rows of a range, to see whether the plaintext is what the ciphertext says. A row
-- without a ciphertext comes, too, if it has a plaintext: which of the two is right, nobody can tell from it.
SELECT {key}::bigint, {plaintext}::text, {ciphertext}::text FROM {relation}
WHERE {key} > %(after)s AND {key} <= %(high)s AND ({ciphertext} IS NOT NULL OR {plaintext} IS NOT NULL)
ORDER BY {key} LIMIT %(size)s
