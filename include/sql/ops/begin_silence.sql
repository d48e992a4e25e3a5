INSERT INTO ops.alert_silences (key, reason, by, until)
VALUES (%(key)s, %(reason)s, %(by)s, %(until)s)
ON CONFLICT (key) WHERE ended_at IS NULL DO NOTHING
RETURNING id, key, reason, by, until
