-- What people were told of and nothing says is over: the newest alert of each key, and who has seen it.
SELECT key, occurrence, severity, what, since, raised_at, coalesce(seen.by, '') AS acknowledged_by
FROM (
    SELECT DISTINCT ON (key) *
    FROM ops.alerts
    WHERE NOT notice
    ORDER BY key, id DESC
) AS newest
LEFT JOIN ops.alert_acknowledgements AS seen USING (key, episode)
WHERE severity <> 'info' AND occurrence NOT LIKE '%%/over'
ORDER BY severity <> 'critical', since
