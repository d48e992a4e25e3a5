-- Sessions of this role that earlier or aborted dumps of the same database left behind. For the lease's holder only.
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE application_name LIKE %(pattern)s
  AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
