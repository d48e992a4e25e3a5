-- Who is connected to a database, by role and program. What has no role is the server's own (autovacuum) and steps
-- aside by itself. The type of a backend and its queries are not for everybody to see; role and program are.
SELECT
    usename::text AS role,
    application_name AS program,
    count(*) AS sessions,
    bool_or(usename IN (SELECT rolname FROM pg_roles WHERE rolsuper)) AS superuser
FROM pg_stat_activity
WHERE datname = %(name)s AND pid <> pg_backend_pid() AND usename IS NOT NULL
GROUP BY 1, 2
ORDER BY 1, 2
