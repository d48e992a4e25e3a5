-- What Slack has not taken, and Sentry has not been told of.
SELECT key, occurrence, severity, what, why, since, next, owner, runbook, link
FROM ops.alerts
WHERE sent_at IS NULL AND sentry_event_id IS NULL AND NOT notice
ORDER BY id
