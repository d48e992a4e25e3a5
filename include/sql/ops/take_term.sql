-- The same holder keeps its token. Another takes a term that has ended or expired, with a higher one.
INSERT INTO ops.terms AS t (name, holder, token, taken_at, expires_at)
VALUES (%(name)s, %(holder)s, 1, now(), now() + %(ttl)s)
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder,
    token = t.token + CASE WHEN t.holder = excluded.holder AND t.ended_at IS NULL THEN 0 ELSE 1 END,
    taken_at = CASE WHEN t.holder = excluded.holder AND t.ended_at IS NULL THEN t.taken_at ELSE now() END,
    expires_at = excluded.expires_at,
    ended_at = NULL
WHERE t.holder = excluded.holder OR t.ended_at IS NOT NULL OR t.expires_at < now()
RETURNING name, holder, token, taken_at, expires_at
