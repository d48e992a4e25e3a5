UPDATE ops.terms SET ended_at = now() WHERE name = %(name)s AND token = %(token)s AND ended_at IS NULL
