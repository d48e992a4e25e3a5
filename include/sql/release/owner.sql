-- Who migrates the database: the role that owns most of its tables, partitions not counted; of two equal ones the
-- database's own owner.
SELECT pg_get_userbyid(c.relowner)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_database AS d ON d.datname = current_database()
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
GROUP BY c.relowner, d.datdba
ORDER BY count(*) DESC, c.relowner = d.datdba DESC, c.relowner
LIMIT 1
