-- Whether an index of this name is there, and whole; what a CREATE INDEX CONCURRENTLY that was ended leaves is not.
SELECT indisvalid AND indisready
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname = %(index)s
