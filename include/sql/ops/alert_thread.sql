SELECT thread_ts, now() - last_sent_at AS quiet
FROM ops.alert_threads
WHERE key = %(key)s AND channel = %(channel)s
