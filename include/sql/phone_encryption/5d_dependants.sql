-- What depends on the plaintext column, and whether it stops the drop. The rest is dropped with the column in silence, so
-- a person sees it before: indexes and checks; a column that is computed from it stops the drop, too.
SELECT pg_describe_object(classid, objid, objsubid) AS what,
       NOT bool_or(deptype <> 'n') OR bool_or(classid = 'pg_attrdef'::regclass AND adnum <> attnum) AS stops
FROM pg_depend
JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
LEFT JOIN pg_attrdef ON pg_attrdef.oid = objid AND classid = 'pg_attrdef'::regclass
LEFT JOIN pg_trigger ON pg_trigger.oid = objid AND classid = 'pg_trigger'::regclass
WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass(%(relation)s) AND attname = %(plaintext)s
  AND tgname IS DISTINCT FROM %(stale_trigger)s
GROUP BY 1 ORDER BY 1
