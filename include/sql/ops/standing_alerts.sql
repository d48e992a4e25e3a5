-- What people were told of, and not yet that it is over: keys whose newest alert is not one of severity info.
SELECT key, occurrence
FROM (
    SELECT DISTINCT ON (key) key, occurrence, severity
    FROM ops.alerts
    WHERE starts_with(key, %(prefix)s) AND NOT notice
    ORDER BY key, id DESC
) AS newest
WHERE severity <> 'info'
