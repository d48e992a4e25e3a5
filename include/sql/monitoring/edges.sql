-- When somebody looked for the first time ever, and for the last time before `since`; sums know of looks that were deleted.
SELECT min(at) AS first_at, max(at) FILTER (WHERE at < %(since)s) AS last_before
FROM (
    (SELECT at FROM ops.health_samples WHERE subject = %(subject)s ORDER BY at LIMIT 1)
    UNION ALL
    (SELECT at FROM ops.health_samples WHERE subject = %(subject)s AND at < %(since)s ORDER BY at DESC LIMIT 1)
    UNION ALL
    SELECT unnest(ARRAY[first_at, last_at]) FROM ops.uptime_sums WHERE subject = %(subject)s AND period = 'day'
) AS looks
