-- Slack takes a channel's name for a message, but only its id for a look into it.
SELECT channel_id
FROM ops.alert_threads
WHERE channel = %(channel)s AND channel_id <> ''
ORDER BY last_sent_at DESC
LIMIT 1
