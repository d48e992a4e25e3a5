INSERT INTO ops.alert_silences (key, reason, by, began_at, until)
VALUES (%(key)s, %(reason)s, %(by)s, %(began_at)s, %(until)s)
ON CONFLICT (key) WHERE ended_at IS NULL DO NOTHING
RETURNING id, key, reason, by, until
