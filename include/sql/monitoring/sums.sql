SELECT begins, expected, stored, taken, healthy, unhealthy, unknown, p50, p95, p99, app_p95, first_at, last_at, gaps
FROM ops.uptime_sums
WHERE subject = %(subject)s AND period = %(period)s AND begins >= %(first)s AND begins <= %(last)s
ORDER BY begins
