-- Taken over from whoever did not renew: its token is void from now on. The name of the former holder is kept.
UPDATE ops.terms AS t
SET holder = %(holder)s || '/' || expired.former, token = t.token + 1, expires_at = now() + %(ttl)s
FROM (
    SELECT name, CASE WHEN starts_with(holder, %(holder)s || '/') THEN substr(holder, length(%(holder)s) + 2)
                      ELSE holder END AS former
    FROM ops.terms
    WHERE starts_with(name, %(prefix)s) AND ended_at IS NULL AND expires_at < now()
    FOR UPDATE SKIP LOCKED
) AS expired
WHERE t.name = expired.name
RETURNING t.name, expired.former AS holder, t.token, t.taken_at, t.expires_at
