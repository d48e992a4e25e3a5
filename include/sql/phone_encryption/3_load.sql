-- How the database bears the backfill. Takes no lock; needs pg_monitor to see others' sessions.
-- replay_lag stands still when a standby stops to replay: what it has replayed is compared, too.
SELECT
    (SELECT coalesce(extract(epoch FROM max(replay_lag)), 0)::float8 FROM pg_stat_replication) AS replay_lag,
    (SELECT pg_wal_lsn_diff(min(replay_lsn), '0/0')::float8 FROM pg_stat_replication) AS replayed,
    pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 AS written,
    (
        SELECT count(*) FROM pg_stat_activity AS waiting
        WHERE waiting.wait_event_type = 'Lock' AND waiting.application_name NOT LIKE 'payme\_ops:%%'
          AND EXISTS (
              SELECT FROM pg_stat_activity AS ours
              WHERE ours.pid = ANY (pg_blocking_pids(waiting.pid))
                AND ours.datname = current_database() AND ours.application_name LIKE 'payme\_ops:migration:%%'
          )
    ) AS waiters,
    EXISTS (
        SELECT FROM pg_stat_progress_vacuum JOIN pg_stat_activity USING (pid)
        WHERE relid = to_regclass(%(relation)s) AND backend_type = 'autovacuum worker'
    ) AS autovacuum
