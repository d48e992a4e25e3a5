-- A holder that lives but has not renewed in time: its host hangs. End its session; its token is void from now on.
SELECT pg_terminate_backend(l.backend_pid)
FROM ops.leases AS l
JOIN pg_stat_activity AS a ON a.pid = l.backend_pid AND a.backend_start <= l.acquired_at
WHERE l.name = %(name)s AND l.expires_at < now()
