-- What the looks of each day or month came to, in Nairobi's time. A slot counts once, by its first look: a release that looks
-- besides, for its baseline, adds nothing. Percentiles are of healthy answers: what did not answer has no time.
WITH looks AS (
    SELECT
        date_trunc(%(period)s, at AT TIME ZONE 'Africa/Nairobi')::date AS begins,
        at,
        state,
        ms,
        CASE WHEN json_typeof(facts -> 'p95') = 'number' THEN (facts ->> 'p95')::float8 END AS app_p95,
        row_number() OVER (PARTITION BY floor(extract(epoch FROM at) / %(interval)s::numeric) ORDER BY at) = 1 AS counts
    FROM ops.health_samples
    WHERE subject = %(subject)s AND at >= %(since)s AND at < %(until)s
)
SELECT
    begins,
    count(*) AS stored,
    count(*) FILTER (WHERE counts) AS taken,
    count(*) FILTER (WHERE counts AND state = 'healthy') AS healthy,
    count(*) FILTER (WHERE counts AND state = 'unhealthy') AS unhealthy,
    count(*) FILTER (WHERE counts AND state = 'unknown') AS unknown,
    percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY ms)
        FILTER (WHERE counts AND state = 'healthy' AND ms < 'Infinity') AS ms,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY app_p95) FILTER (WHERE counts) AS app_p95,
    min(at) AS first_at,
    max(at) AS last_at
FROM looks
GROUP BY begins
ORDER BY begins
