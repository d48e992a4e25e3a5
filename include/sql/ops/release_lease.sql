-- The row stays, so that the fencing token keeps growing; the lock says that nobody holds it.
WITH released AS (
    UPDATE ops.leases SET expires_at = now() WHERE name = %(name)s AND token = %(token)s
)
SELECT pg_advisory_unlock(hashtextextended(%(name)s, 0))
