-- pg_roles shows every role without its password.
SELECT r.rolname AS name,
       concat_ws(' ',
           CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolcreaterole THEN 'createrole' END,
           CASE WHEN r.rolcreatedb THEN 'createdb' END, CASE WHEN r.rolcanlogin THEN 'login' END,
           CASE WHEN r.rolreplication THEN 'replication' END, CASE WHEN r.rolbypassrls THEN 'bypassrls' END,
           CASE WHEN NOT r.rolinherit THEN 'noinherit' END) AS attributes,
       -- A membership that two roles granted is one: a restore has one grantor.
       coalesce(array_agg(DISTINCT g.rolname::text ORDER BY g.rolname::text) FILTER (WHERE g.rolname IS NOT NULL), '{}')
           AS member_of
FROM pg_roles AS r
LEFT JOIN pg_auth_members AS m ON m.member = r.oid
LEFT JOIN pg_roles AS g ON g.oid = m.roleid
WHERE r.rolname !~ '^pg_'
GROUP BY r.oid, r.rolname, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication,
         r.rolbypassrls, r.rolinherit
ORDER BY r.rolname COLLATE "C"
