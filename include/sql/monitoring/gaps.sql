-- From which look to which there was none in between for longer than so; the last one lasts until `until`.
SELECT at, next
FROM (
    SELECT at, lead(at, 1, %(until)s) OVER (ORDER BY at) AS next
    FROM (
        SELECT at FROM ops.health_samples WHERE subject = %(subject)s AND at >= %(since)s AND at < %(until)s
        UNION ALL
        SELECT %(last_before)s::timestamptz WHERE %(last_before)s::timestamptz IS NOT NULL
    ) AS looks
) AS pairs
WHERE next - at > %(longest)s
ORDER BY at
