-- Rows by chance with what they store, of a database whose plaintext was dropped. What is not of a ciphertext's form (a
-- number that somebody wrote) stays where it is; its row is named all the same. ACCESS SHARE; one sequential scan.
SELECT {key}::bigint, CASE WHEN {stored} ~ '^v[0-9]+:[a-z0-9]{{1,16}}:[A-Za-z0-9_-]+$' THEN {stored} ELSE '' END
FROM {source} WHERE {stored} IS NOT NULL
ORDER BY random() LIMIT %(pairs)s
