-- One at a time for each subject: who comes second opens none. The last good look may be older than those decided on.
INSERT INTO ops.outages (subject, kind, began_at, last_good_at, opened_at, why, p95, muted_until, muted_by)
SELECT
    %(subject)s, %(kind)s, %(began_at)s,
    (
        SELECT max(at) FROM ops.health_samples
        WHERE subject = %(subject)s AND at < %(began_at)s AND state = 'healthy' AND ms <= %(slow_ms)s
    ),
    %(opened_at)s, %(why)s,
    (
        SELECT (facts ->> 'p95')::real FROM ops.health_samples
        WHERE subject = %(subject)s AND at > %(began_at)s - interval '1 day' AND facts ->> 'p95' IS NOT NULL
        ORDER BY at DESC
        LIMIT 1
    ),
    %(muted_until)s, %(muted_by)s
ON CONFLICT (subject) WHERE ended_at IS NULL DO NOTHING
RETURNING *
