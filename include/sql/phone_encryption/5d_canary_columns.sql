-- What a row that is rolled back again takes from another row, column by column: its value, or where a unique index holds
-- the column, one of its own. NULL where we know none. Left out: what has its own default, and ours.
SELECT attname,
       CASE WHEN NOT EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND attnum = ANY(indkey))
            THEN quote_ident(attname)
            WHEN atttypid = 'uuid'::regtype THEN 'gen_random_uuid()'
            WHEN typcategory = 'S' THEN 'gen_random_uuid()::text'
       END
FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
WHERE attrelid = to_regclass(%(relation)s) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity = ''
  AND attname NOT IN (%(key)s, %(plaintext)s, %(ciphertext)s, %(blind_index)s)
ORDER BY attnum
