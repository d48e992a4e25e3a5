-- What belongs to a database and not to what is in it: pg_dump brings none of it back, a swap has to carry it over.
-- Privileges and settings in comparable form; a database without an access list has the default one.
SELECT
    pg_get_userbyid(d.datdba) AS owner,
    ARRAY(
        SELECT format('%%s=%%s%%s', CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END, privilege_type,
                      CASE WHEN is_grantable THEN '*' ELSE '' END)
        FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba)))
        ORDER BY 1
    ) AS privileges,
    ARRAY(
        SELECT format('%%s: %%s', CASE setrole WHEN 0 THEN 'all' ELSE pg_get_userbyid(setrole) END, entry)
        FROM pg_db_role_setting, unnest(setconfig) AS entry
        WHERE setdatabase = d.oid
        ORDER BY 1
    ) AS settings,
    d.datconnlimit AS connection_limit,
    shobj_description(d.oid, 'pg_database') AS comment,
    (SELECT spcname FROM pg_tablespace WHERE oid = d.dattablespace) AS tablespace,
    format('%%s %%s %%s', pg_encoding_to_char(d.encoding), d.datcollate, d.datctype) AS locale,
    pg_database_size(d.oid) AS size_bytes
FROM pg_database AS d
WHERE d.datname = %(name)s
