SELECT DISTINCT key FROM ops.alerts WHERE sent_at IS NULL AND starts_with(key, %(prefix)s)
