-- Who is connected and may write the table: sessions by role and program. `app_role`'s sessions are the application; of
-- the others those whose grants let them write, except the table's owner and us. Superusers may everything and are
-- people. Takes no lock; programs of other roles show only with pg_read_all_stats.
SELECT
    activity.usename = %(app_role)s AS application,
    activity.usename::text AS role,
    activity.application_name AS program,
    count(*)::integer AS sessions
FROM pg_class AS users
JOIN pg_stat_activity AS activity ON activity.datname = current_database()
JOIN pg_roles AS role ON role.oid = activity.usesysid
WHERE users.relnamespace = to_regnamespace(quote_ident(%(schema)s))
    AND users.relname = ANY (%(tables)s)
    AND users.relkind IN ('r', 'p')
    AND activity.backend_type = 'client backend'  -- a parallel worker has its leader's name
    AND activity.application_name NOT LIKE 'payme\_ops:%%'
    AND (
        activity.usename = %(app_role)s
        OR NOT role.rolsuper
            AND role.oid <> users.relowner
            AND role.rolname <> session_user
            AND (
                has_any_column_privilege(role.oid, users.oid, 'INSERT')
                OR has_any_column_privilege(role.oid, users.oid, 'UPDATE')
            )
    )
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
