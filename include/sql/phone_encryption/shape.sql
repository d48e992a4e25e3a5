-- Where the table stands, in one row; catalogues only. While the shim view has the table's name, its base is meant.
WITH found AS (
    SELECT oid FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname IN (%(table)s, %(base)s)
      AND relkind IN ('r', 'p')
    ORDER BY relname = %(table)s DESC
    LIMIT 1
), col AS (
    SELECT attname, attnum, attnotnull FROM pg_attribute
    WHERE attrelid = (SELECT oid FROM found) AND attnum > 0 AND NOT attisdropped
), con AS (
    SELECT conname, conkey, CASE WHEN convalidated THEN 'valid' ELSE 'not valid' END AS state
    FROM pg_constraint WHERE conrelid = (SELECT oid FROM found) AND contype = 'c'
), ind AS (
    SELECT relname, indisunique, indkey, indisvalid AND indisready AS good,
           indnkeyatts = 1 AND indpred IS NULL AND NOT indisprimary AS plain
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = (SELECT oid FROM found)
), plain AS (
    SELECT attnum, attnotnull FROM col WHERE attname = %(plaintext)s
)
SELECT EXISTS (SELECT FROM plain) AS plaintext_name,
       EXISTS (SELECT FROM col WHERE attname = %(ciphertext)s) AS has_ciphertext,
       EXISTS (SELECT FROM col WHERE attname = %(blind_index)s) AS has_blind_index,
       (SELECT state FROM con WHERE conname = %(format_check)s) AS format_check,
       (SELECT state FROM con WHERE conname = %(complete_check)s) AS complete_check,
       -- The check follows its column through the rename, and so tells whose the name is.
       EXISTS (SELECT FROM con, plain WHERE conname = %(format_check)s AND conkey = ARRAY[attnum]) AS switched,
       EXISTS (
           SELECT FROM pg_trigger WHERE tgrelid = (SELECT oid FROM found) AND tgname = %(stale_trigger)s
       ) AS stale_trigger,
       (SELECT CASE WHEN good THEN 'valid' ELSE 'invalid' END FROM ind WHERE relname = %(index)s) AS index,
       coalesce((SELECT indisunique FROM ind WHERE relname = %(index)s), false) AS unique_index,
       EXISTS (SELECT FROM ind, plain WHERE indisunique AND good AND ind.plain AND indkey[0] = attnum)
           AS unique_plaintext,
       coalesce((SELECT attnotnull FROM plain), false) AS not_null,
       EXISTS (
           SELECT FROM pg_class
           WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname = %(table)s AND relkind = 'v'
       ) AS shim
FROM found
