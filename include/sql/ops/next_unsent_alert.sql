SELECT
    id, key, occurrence, severity, what, why, since, next, owner, runbook, link, notice, attempted_at, attempted_in
FROM ops.alerts
WHERE key = %(key)s AND sent_at IS NULL
ORDER BY id
LIMIT 1
