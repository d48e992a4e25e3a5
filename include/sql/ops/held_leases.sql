-- Every lease that somebody holds now: by a session that keeps its advisory lock, or as a term that lives.
SELECT name, holder, acquired_at AS since
FROM ops.leases AS l, hashtextextended(l.name, 0) AS k
WHERE EXISTS (
    SELECT
    FROM pg_locks AS p
    WHERE p.locktype = 'advisory' AND p.granted AND p.objsubid = 1
      AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND p.classid::bigint = ((k >> 32) & 4294967295)
      AND p.objid::bigint = (k & 4294967295)
)
UNION ALL
SELECT name, holder, taken_at
FROM ops.terms
WHERE ended_at IS NULL AND expires_at >= now()
ORDER BY since, name
