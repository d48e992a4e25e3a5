-- Sessions waiting for a lock that one of the sessions of this backup holds or waits for in front of them.
SELECT DISTINCT l.pid,
       coalesce(l.relation::regclass::text, l.locktype) AS what,
       l.mode
FROM pg_locks AS l
WHERE NOT l.granted
  AND EXISTS (
      SELECT
      FROM pg_stat_activity AS ours
      WHERE ours.application_name = %(application)s AND ours.pid <> l.pid
        AND ours.pid = ANY (pg_blocking_pids(l.pid))
  )
  AND NOT EXISTS (SELECT FROM pg_stat_activity AS own WHERE own.pid = l.pid AND own.application_name = %(application)s)
