-- What makes the plaintext unique, by itself: constraints and bare indexes, with what it takes to build them again.
SELECT relname AS name, pg_get_indexdef(indexrelid) AS definition, conname IS NOT NULL AS is_constraint,
       coalesce(condeferrable, false) AS deferrable, coalesce(condeferred, false) AS deferred
FROM pg_index
JOIN pg_class ON pg_class.oid = indexrelid
JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
LEFT JOIN pg_constraint ON conindid = indexrelid AND contype = 'u'
WHERE indrelid = to_regclass(%(relation)s) AND attname = %(plaintext)s AND indnkeyatts = 1 AND indpred IS NULL
  AND indisunique AND NOT indisprimary AND indisvalid AND indisready
ORDER BY relname
