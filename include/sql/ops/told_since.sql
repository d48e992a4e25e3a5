-- What was raised in that time, key by key: how often, and the first words that were not of its end.
SELECT
    key,
    count(*) AS times,
    coalesce(
        (array_agg(what ORDER BY id) FILTER (WHERE occurrence NOT LIKE '%%/over'))[1],
        (array_agg(what ORDER BY id))[1]
    ) AS what
FROM ops.alerts
WHERE raised_at >= %(since)s AND raised_at <= %(until)s AND NOT notice
GROUP BY key
ORDER BY min(id)
