-- A lease is held when some session keeps its advisory lock. The 64-bit key stands in pg_locks as two halves.
WITH key AS (SELECT hashtextextended(%(name)s, 0) AS k)
SELECT l.holder, l.acquired_at
FROM ops.leases AS l, key
WHERE l.name = %(name)s
  AND EXISTS (
      SELECT
      FROM pg_locks AS p
      WHERE p.locktype = 'advisory' AND p.granted AND p.objsubid = 1
        AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND p.classid::bigint = ((k >> 32) & 4294967295)
        AND p.objid::bigint = (k & 4294967295)
  )
