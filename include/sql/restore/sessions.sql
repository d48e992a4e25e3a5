-- Who is connected to a database, by role and program; autovacuum steps aside by itself.
SELECT
    coalesce(usename, backend_type) AS role,
    application_name AS program,
    count(*) AS sessions,
    bool_or(usename IS NULL OR usename IN (SELECT rolname FROM pg_roles WHERE rolsuper)) AS superuser
FROM pg_stat_activity
WHERE datname = %(name)s AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
GROUP BY 1, 2
ORDER BY 1, 2
