-- The caller holds the advisory lock of this name, so whoever is in the row is gone.
INSERT INTO ops.leases AS l (name, holder, token, acquired_at, expires_at, backend_pid)
VALUES (%(name)s, %(holder)s, 1, now(), now() + %(ttl)s::interval, pg_backend_pid())
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder,
    token = l.token + 1,
    acquired_at = excluded.acquired_at,
    expires_at = excluded.expires_at,
    backend_pid = excluded.backend_pid
RETURNING token
