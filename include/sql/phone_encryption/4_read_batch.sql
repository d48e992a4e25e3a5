-- The next rows with a ciphertext, all or those of the given keys, to find the ones that are bound to no row. ACCESS SHARE.
SELECT {key}::bigint, {plaintext}::text, {ciphertext}::text, {blind_index} FROM {relation}
WHERE {key} > %(after)s AND {ciphertext} IS NOT NULL AND (%(ids)s::bigint[] IS NULL OR {key} = ANY (%(ids)s))
ORDER BY {key} LIMIT %(size)s
