-- One right a row, in the order in which the list has them; PUBLIC is NULL.
SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable,
       pg_get_userbyid(grantor)
FROM aclexplode(%s::aclitem[]) WITH ORDINALITY AS item (grantor, grantee, privilege_type, is_grantable, place)
ORDER BY place
