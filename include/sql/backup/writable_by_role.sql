-- What a backup role must not be able to do: superuser, create databases or roles, write tables, own anything here.
SELECT 'role attribute ' || attribute AS power
FROM pg_roles AS r
CROSS JOIN LATERAL (
    VALUES ('SUPERUSER', r.rolsuper), ('CREATEDB', r.rolcreatedb), ('CREATEROLE', r.rolcreaterole)
) AS a (attribute, has)
WHERE r.rolname = current_user AND a.has
UNION ALL
SELECT 'member of ' || g.role
FROM (VALUES ('pg_write_all_data'), ('pg_execute_server_program'), ('pg_write_server_files')) AS g (role)
WHERE pg_has_role(current_user, g.role, 'USAGE')
UNION ALL
SELECT p.privilege || ' on ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN (VALUES ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE')) AS p (privilege)
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND n.nspname !~ '^pg_(temp|toast_temp)_'
  AND has_table_privilege(c.oid, p.privilege)
LIMIT 5
