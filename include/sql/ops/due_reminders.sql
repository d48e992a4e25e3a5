-- Questions that stand without an answer, each with the last reminder that is due, unless it was written down as an alert:
-- the alert is what makes it once only. Who asked again is reminded of the newer question alone.
SELECT asked.id, asked.gate, asked.subject, asked.link, asked.thread, asked.asked_at, asked.expires_at, due.minutes
FROM ops.approvals AS asked
CROSS JOIN LATERAL (
    SELECT max(after.minutes) AS minutes
    FROM unnest(%(minutes)s::integer[]) AS after (minutes)
    WHERE asked.asked_at + make_interval(mins => after.minutes) <= now()
) AS due
WHERE asked.choice IS NULL
    AND asked.thread <> ''
    AND asked.expires_at > now()
    AND due.minutes IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM ops.approvals AS newer
        WHERE newer.run = asked.run AND newer.gate = asked.gate AND newer.id > asked.id
    )
    AND NOT EXISTS (
        SELECT FROM ops.alerts AS told
        WHERE told.key = asked.thread AND told.occurrence = concat('reminder ', asked.id, ' after ', due.minutes, ' min')
    )
ORDER BY asked.id
