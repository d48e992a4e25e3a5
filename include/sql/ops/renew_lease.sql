UPDATE ops.leases
SET expires_at = now() + %(ttl)s::interval
WHERE name = %(name)s AND token = %(token)s
