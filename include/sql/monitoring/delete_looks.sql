-- Some looks that are past their time: of runs, and of days and months that are both summed.
WITH old AS (
    SELECT subject, at
    FROM ops.health_samples AS s
    WHERE at < %(before)s AND (
        strpos(subject, '/') > 0
        OR (
            EXISTS (
                SELECT FROM ops.uptime_sums AS d
                WHERE d.subject = s.subject AND d.period = 'day'
                    AND d.begins = (s.at AT TIME ZONE 'Africa/Nairobi')::date
            )
            AND EXISTS (
                SELECT FROM ops.uptime_sums AS m
                WHERE m.subject = s.subject AND m.period = 'month'
                    AND m.begins = date_trunc('month', s.at AT TIME ZONE 'Africa/Nairobi')::date
            )
        )
    )
    LIMIT %(batch)s
)
DELETE FROM ops.health_samples AS s USING old WHERE s.subject = old.subject AND s.at = old.at
