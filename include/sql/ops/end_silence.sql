UPDATE ops.alert_silences
SET ended_at = now()
WHERE key = %(key)s AND ended_at IS NULL
RETURNING id, key, reason, by, began_at, until
