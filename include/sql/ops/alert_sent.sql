WITH sent AS (
    UPDATE ops.alerts
    SET sent_at = now(), slack_ts = %(ts)s, attempts = attempts + 1, last_error = ''
    WHERE id = %(id)s
    RETURNING key
)
INSERT INTO ops.alert_threads (key, channel, thread_ts, last_sent_at)
SELECT key, %(channel)s, %(thread_ts)s, now() FROM sent
ON CONFLICT (key, channel) DO UPDATE SET thread_ts = excluded.thread_ts, last_sent_at = excluded.last_sent_at
