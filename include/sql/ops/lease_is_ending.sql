SELECT 1 FROM ops.leases WHERE name = %(name)s AND expires_at < now()
