-- What is on, with what has been told of it, and whether somebody said that they have seen it: that it is down, where it
-- was told that it is down by now.
SELECT
    o.*,
    ARRAY(
        SELECT a.occurrence FROM ops.alerts AS a
        WHERE a.key = 'health:' || o.subject
            AND (a.occurrence = 'outage/' || o.id OR starts_with(a.occurrence, 'outage/' || o.id || '/'))
    ) AS told,
    EXISTS (
        SELECT FROM ops.alert_acknowledgements AS seen
        WHERE seen.key = 'health:' || o.subject
            AND seen.episode = coalesce(
                (
                    SELECT a.occurrence FROM ops.alerts AS a
                    WHERE a.key = 'health:' || o.subject AND a.occurrence = 'outage/' || o.id || '/down'
                ),
                'outage/' || o.id
            )
    ) AS acknowledged
FROM ops.outages AS o
WHERE o.ended_at IS NULL
ORDER BY o.id
