-- Who came first has seen it; then there is one row more than before.
INSERT INTO ops.alert_acknowledgements (key, episode, by, why)
SELECT key, episode, %(by)s, %(why)s
FROM ops.alerts
WHERE key = %(key)s AND occurrence = %(occurrence)s
ON CONFLICT DO NOTHING
RETURNING episode
