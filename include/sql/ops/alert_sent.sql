-- What was not shown in the channel does not count: a thread that was silenced has been quiet.
WITH sent AS (
    UPDATE ops.alerts
    SET sent_at = now(), slack_ts = %(ts)s, attempts = attempts + 1, last_error = ''
    WHERE id = %(id)s
    RETURNING key
)
INSERT INTO ops.alert_threads (key, channel, thread_ts, last_sent_at, channel_id)
SELECT key, %(channel)s, %(thread_ts)s, CASE WHEN %(hushed)s THEN to_timestamp(0) ELSE now() END, %(channel_id)s
FROM sent
ON CONFLICT (key, channel) DO UPDATE
SET
    thread_ts = excluded.thread_ts,
    channel_id = coalesce(nullif(excluded.channel_id, ''), alert_threads.channel_id),
    last_sent_at = greatest(excluded.last_sent_at, alert_threads.last_sent_at)
