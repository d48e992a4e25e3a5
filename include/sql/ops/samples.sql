SELECT at, state, ms, facts
FROM ops.health_samples
WHERE subject = %(subject)s AND at >= %(since)s AND at < %(until)s
ORDER BY at
