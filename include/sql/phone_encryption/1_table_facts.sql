-- What step 1 asks of the table, its owner and those who copy it; catalogues only.
SELECT relkind = 'r' AND NOT relispartition
           AND NOT EXISTS (SELECT FROM pg_inherits WHERE pg_class.oid IN (inhrelid, inhparent)) AS ordinary_table,
       EXISTS (
           SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
           WHERE indrelid = pg_class.oid AND indisprimary AND indnkeyatts = 1 AND attname = %(key)s
             AND atttypid IN ('bigint'::regtype, 'integer'::regtype)
       ) AS integer_primary_key,
       EXISTS (
           SELECT FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
           WHERE attrelid = pg_class.oid AND attname = %(plaintext)s AND NOT attisdropped AND typcategory = 'S'
             AND attgenerated = ''
       ) AS text_column,
       to_regclass(%(base_relation)s) IS NULL AS base_name_is_free,
       has_schema_privilege(relowner, relnamespace, 'CREATE') AS owner_creates_in_schema,
       has_database_privilege(relowner, current_database(), 'CREATE') AS owner_creates_schema,
       ARRAY(
           SELECT pubname::text FROM pg_publication_tables
           WHERE schemaname = %(schema)s AND tablename = relname ORDER BY pubname
       ) AS publications
FROM pg_class WHERE oid = to_regclass(%(relation)s)
