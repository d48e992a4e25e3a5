-- Where a view in the table's place would break something: then step 5 stops after the drop. One reason a row.
WITH tab AS (
    SELECT pg_class.oid, relkind, relname, nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass(%(relation)s)
), named AS (
    SELECT attnum FROM pg_attribute, tab
    WHERE attrelid = tab.oid AND attname IN (%(plaintext)s, %(ciphertext)s) AND NOT attisdropped
)
SELECT format('publication %%s sends it', pubname)
FROM pg_publication_tables, tab WHERE schemaname = nspname AND tablename = relname
UNION
SELECT format('%%s depends on it', pg_describe_object('pg_class'::regclass, ev_class, 0))
FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid, tab
WHERE classid = 'pg_rewrite'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = tab.oid
  AND ev_class <> tab.oid
UNION
SELECT format('it has the rule %%I', rulename) FROM pg_rewrite, tab WHERE ev_class = tab.oid
UNION
SELECT format('the policy %%I names the column', polname)
FROM pg_depend JOIN pg_policy ON pg_policy.oid = objid, tab
WHERE classid = 'pg_policy'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = tab.oid
  AND refobjsubid IN (SELECT attnum FROM named)
UNION
SELECT 'it is partitioned, or inherits' FROM tab
WHERE relkind = 'p' OR EXISTS (SELECT FROM pg_inherits WHERE tab.oid IN (inhrelid, inhparent))
UNION
SELECT 'PostgreSQL before 15 has no view with the rights of who asks'
WHERE current_setting('server_version_num')::int < 150000
ORDER BY 1
