SELECT id, key, reason, by, until
FROM ops.alert_silences
WHERE ended_at IS NULL AND until > now()
ORDER BY until, id
