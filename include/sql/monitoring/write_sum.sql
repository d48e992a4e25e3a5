-- Once; again only with more looks than before: some came late.
INSERT INTO ops.uptime_sums AS s (
    subject, period, begins, interval_seconds, expected, stored, taken, healthy, unhealthy, unknown, p50, p95, p99, app_p95,
    first_at, last_at, gaps
)
VALUES (
    %(subject)s, %(period)s, %(begins)s, %(interval_seconds)s, %(expected)s, %(stored)s, %(taken)s, %(healthy)s,
    %(unhealthy)s, %(unknown)s, %(p50)s, %(p95)s, %(p99)s, %(app_p95)s, %(first_at)s, %(last_at)s, %(gaps)s
)
ON CONFLICT (subject, period, begins) DO UPDATE
SET interval_seconds = excluded.interval_seconds, expected = excluded.expected, stored = excluded.stored,
    taken = excluded.taken, healthy = excluded.healthy, unhealthy = excluded.unhealthy, unknown = excluded.unknown,
    p50 = excluded.p50, p95 = excluded.p95, p99 = excluded.p99, app_p95 = excluded.app_p95,
    first_at = excluded.first_at, last_at = excluded.last_at, gaps = excluded.gaps, summed_at = excluded.summed_at
WHERE excluded.stored > s.stored
