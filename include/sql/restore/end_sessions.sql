-- End every session of a database that this role may end: a rename wants it empty. Superusers' sessions stay, and
-- then the rename is refused.
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = %(name)s
    AND pid <> pg_backend_pid()
    AND usename NOT IN (SELECT rolname FROM pg_roles WHERE rolsuper)
