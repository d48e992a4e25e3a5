-- The access list of a database, entry by entry, for GRANT. Of the owner's own rights nothing has to be granted.
SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END AS grantee, privilege_type, is_grantable
FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
WHERE datname = %(name)s
