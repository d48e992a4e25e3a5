-- Rights on a table or view (under '') and on its columns, as the catalogues have them.
SELECT '' AS column_name, relacl::text AS acl FROM pg_class WHERE oid = to_regclass(%(relation)s)
UNION ALL
SELECT attname, attacl::text FROM pg_attribute
WHERE attrelid = to_regclass(%(relation)s) AND attnum > 0 AND NOT attisdropped
