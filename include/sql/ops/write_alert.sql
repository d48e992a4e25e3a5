INSERT INTO ops.alerts (key, occurrence, severity, what, why, since, next, owner, runbook, link, notice)
VALUES (
    %(key)s, %(occurrence)s, %(severity)s, %(what)s, %(why)s, %(since)s, %(next)s, %(owner)s, %(runbook)s, %(link)s,
    %(notice)s
)
ON CONFLICT (key, occurrence) DO NOTHING
