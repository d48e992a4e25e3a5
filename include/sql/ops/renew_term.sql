-- One that expired but that nobody has taken over is still ours.
UPDATE ops.terms
SET expires_at = now() + %(ttl)s
WHERE name = %(name)s AND token = %(token)s AND ended_at IS NULL
