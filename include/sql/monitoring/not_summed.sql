-- Ended days and months with looks that no sum holds. Looks of runs (their subject has a slash) are not summed.
-- `incomplete`: fewer looks of that month are there than its sums were made of, so some were deleted, and a sum would lie.
WITH present AS (
    SELECT subject, (at AT TIME ZONE 'Africa/Nairobi')::date AS begins, count(*) AS stored
    FROM ops.health_samples
    WHERE strpos(subject, '/') = 0 AND at < %(today)s::date::timestamp AT TIME ZONE 'Africa/Nairobi'
    GROUP BY 1, 2
), months AS (
    SELECT subject, date_trunc('month', begins)::date AS begins, sum(stored) AS stored
    FROM present
    GROUP BY 1, 2
), incomplete AS (
    SELECT m.subject, m.begins
    FROM months AS m
    JOIN ops.uptime_sums AS s ON s.subject = m.subject AND date_trunc('month', s.begins)::date = m.begins
    GROUP BY m.subject, m.begins, m.stored
    HAVING m.stored < greatest(
        sum(s.stored) FILTER (WHERE s.period = 'day'), sum(s.stored) FILTER (WHERE s.period = 'month')
    )
), ended AS (
    SELECT 'day' AS period, subject, begins, stored FROM present
    UNION ALL
    SELECT 'month', subject, begins, stored FROM months
    WHERE begins + interval '1 month' <= %(today)s::date
)
SELECT e.period, e.subject, e.begins, i.subject IS NOT NULL AS incomplete
FROM ended AS e
LEFT JOIN ops.uptime_sums AS s ON s.subject = e.subject AND s.period = e.period AND s.begins = e.begins
LEFT JOIN incomplete AS i ON i.subject = e.subject AND i.begins = date_trunc('month', e.begins)::date
WHERE e.stored > coalesce(s.stored, 0)
ORDER BY e.period, e.subject, e.begins
