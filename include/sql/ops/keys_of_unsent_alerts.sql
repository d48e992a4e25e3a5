SELECT key FROM ops.alerts WHERE sent_at IS NULL GROUP BY key ORDER BY max(attempts), min(id)
