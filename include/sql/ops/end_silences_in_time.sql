UPDATE ops.alert_silences
SET ended_at = until
WHERE ended_at IS NULL AND until <= now()
RETURNING id, key, reason, by, began_at, until
