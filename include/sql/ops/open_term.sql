SELECT name, holder, token, taken_at, expires_at
FROM ops.terms
WHERE name = %(name)s AND ended_at IS NULL
