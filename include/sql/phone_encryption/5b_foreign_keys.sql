-- Foreign keys of other tables that point at the plaintext: they hold its UNIQUE constraint.
SELECT conrelid::regclass || ': ' || conname
FROM pg_constraint JOIN pg_attribute ON attrelid = confrelid AND attnum = ANY(confkey)
WHERE contype = 'f' AND confrelid = to_regclass(%(relation)s) AND attname = %(plaintext)s
ORDER BY 1
