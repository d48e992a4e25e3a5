SELECT attname
FROM pg_attribute
WHERE attrelid = 'log'::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
