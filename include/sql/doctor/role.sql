-- What the role of this session is and was granted. Only what was granted to it itself: what comes by another role is
-- that role's.
SELECT
    rolname AS role,
    ARRAY(
        SELECT attribute
        FROM (
            VALUES ('SUPERUSER', rolsuper), ('CREATEDB', rolcreatedb), ('CREATEROLE', rolcreaterole),
                   ('REPLICATION', rolreplication), ('BYPASSRLS', rolbypassrls)
        ) AS a (attribute, has)
        WHERE has
    ) AS attributes,
    ARRAY(
        SELECT granted.rolname::text
        FROM pg_auth_members JOIN pg_roles AS granted ON granted.oid = roleid
        WHERE member = pg_roles.oid
        ORDER BY 1
    ) AS member_of,
    current_setting('log_error_verbosity') AS log_error_verbosity,
    current_setting('log_min_error_statement') AS log_min_error_statement
FROM pg_roles
WHERE rolname = current_user
