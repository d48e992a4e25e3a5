-- How the database is while a step runs: sessions that have waited for a lock, the longest transaction that is not ours,
-- and the standby that is furthest behind. Takes no lock.
SELECT
    count(*) FILTER (WHERE wait_event_type = 'Lock' AND clock_timestamp() - state_change > %(wait)s)::integer AS lock_waiters,
    coalesce(extract(epoch FROM max(clock_timestamp() - xact_start) FILTER (
        WHERE backend_type = 'client backend' AND application_name NOT LIKE 'payme\_ops:%%'
    )), 0)::double precision AS longest_transaction_seconds,
    (SELECT coalesce(extract(epoch FROM max(replay_lag)), 0)::double precision FROM pg_stat_replication)
        AS replica_lag_seconds
FROM pg_stat_activity
WHERE datname = current_database()
