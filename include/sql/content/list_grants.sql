-- Owner and privileges of every schema, relation, column and function, in one comparable form: NULL ACLs are written
-- out as the defaults they stand for, and entries are sorted, since their order changes in a restore.
WITH object AS (
    SELECT 'schema ' || quote_ident(nspname) AS name, nspowner AS owner,
           coalesce(nspacl, acldefault('n', nspowner)) AS acl
    FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    UNION ALL
    SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END
               || quote_ident(n.nspname) || '.' || quote_ident(c.relname),
           c.relowner,
           coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, c.relowner))
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION ALL
    SELECT 'column ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname) || '.' || quote_ident(a.attname),
           c.relowner, a.attacl
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE a.attacl IS NOT NULL AND NOT a.attisdropped AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION ALL
    SELECT 'function ' || quote_ident(n.nspname) || '.' || quote_ident(p.proname)
               || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      -- Not an extension's; nor what CREATE TYPE makes for a range: whoever creates the type owns it, also when restoring.
      AND NOT EXISTS (
          SELECT FROM pg_depend AS d
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i')
      )
)
SELECT o.name, pg_get_userbyid(o.owner) AS owner,
       coalesce((
           SELECT string_agg(one.entry, ', ' ORDER BY one.entry COLLATE "C")
           FROM (
               SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END || ': '
                      || string_agg(x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ' '
                                    ORDER BY x.privilege_type COLLATE "C") AS entry
               FROM aclexplode(o.acl) AS x
               GROUP BY x.grantee
           ) AS one
       ), '') AS privileges
FROM object AS o
ORDER BY o.name COLLATE "C"
