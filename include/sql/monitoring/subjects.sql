-- Whoever was looked at by the monitor or has sums. From one name to the next by the index, not through every look.
WITH RECURSIVE named AS (
    (SELECT subject FROM ops.health_samples ORDER BY subject LIMIT 1)
    UNION ALL
    SELECT (SELECT subject FROM ops.health_samples AS s WHERE s.subject > named.subject ORDER BY s.subject LIMIT 1)
    FROM named
    WHERE named.subject IS NOT NULL
)
SELECT subject FROM named WHERE strpos(subject, '/') = 0
UNION
SELECT subject FROM ops.uptime_sums
ORDER BY subject
