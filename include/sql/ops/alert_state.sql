SELECT sent_at IS NOT NULL AS sent, slack_ts, sentry_event_id
FROM ops.alerts
WHERE key = %(key)s AND occurrence = %(occurrence)s
