-- The newest looks of the watch at each subject since a moment, for every one at most so many, by the primary key. A
-- release that looks besides is not at the beginning of a slot.
SELECT wanted.subject, look.at, look.state, look.ms, look.facts
FROM unnest(%(subjects)s::text[]) AS wanted (subject)
CROSS JOIN LATERAL (
    SELECT at, state, ms, facts
    FROM ops.health_samples
    WHERE subject = wanted.subject AND at > %(since)s AND at <= %(until)s
        AND mod(extract(epoch FROM at), %(interval)s::numeric) = 0
    ORDER BY at DESC
    LIMIT %(count)s
) AS look
ORDER BY wanted.subject, look.at
