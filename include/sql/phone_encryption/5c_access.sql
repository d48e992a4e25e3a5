-- Why a role can still read or write a column after the brown-out; no row when it cannot. Catalogues only.
SELECT reason FROM pg_roles AS app, pg_class AS tab, LATERAL (
    SELECT 'it is a superuser' AS reason, app.rolsuper AS holds
    UNION ALL
    SELECT 'it is the owner, or a member of ' || relowner::regrole, pg_has_role(app.oid, relowner, 'USAGE')
    UNION ALL
    SELECT 'it is a member of ' || rolname, pg_has_role(app.oid, pg_roles.oid, 'USAGE')
    FROM pg_roles WHERE rolname IN ('pg_read_all_data', 'pg_write_all_data')
    UNION ALL
    SELECT coalesce('it has rights through ' || nullif(grantee, 0)::regrole, 'PUBLIC has rights'),
           grantee = 0 OR pg_has_role(app.oid, grantee, 'USAGE')
    FROM (
        SELECT (aclexplode(relacl)).grantee, (aclexplode(relacl)).privilege_type
        UNION ALL
        SELECT (aclexplode(attacl)).grantee, (aclexplode(attacl)).privilege_type
        FROM pg_attribute WHERE attrelid = tab.oid AND attname = %(plaintext)s
    ) AS granted
    WHERE privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND grantee <> relowner
) AS why
WHERE tab.oid = to_regclass(%(relation)s) AND app.rolname = %(role)s AND holds
  AND has_column_privilege(app.oid, tab.oid, %(plaintext)s, 'SELECT, INSERT, UPDATE, REFERENCES')
GROUP BY reason ORDER BY reason
