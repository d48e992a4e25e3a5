-- Comments of the table and of its columns, which the view gets, too.
SELECT attname, description FROM pg_description
LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND objsubid > 0
WHERE classoid = 'pg_class'::regclass AND objoid = to_regclass(%(relation)s)
