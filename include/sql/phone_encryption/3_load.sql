-- How the database bears the backfill. Takes no lock; needs pg_monitor to see others' sessions and standbys.
-- replay_lag stands still when a standby stops to replay: what it has replayed is compared, too.
-- A standby that is lost is in pg_stat_replication no longer; if it had a slot, that keeps all WAL from then on.
SELECT
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees,
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
        SELECT FROM pg_stat_progress_vacuum AS vacuum JOIN pg_stat_activity USING (pid)
        WHERE vacuum.relid = to_regclass(%(relation)s) AND vacuum.datname = current_database()
          AND backend_type = 'autovacuum worker'
    ) AS autovacuum,
    ARRAY(
        SELECT DISTINCT concat_ws(' at ', application_name, host(client_addr)) FROM pg_stat_replication
        WHERE replay_lsn IS NOT NULL  -- no copy of the server that is being made, no archive of WAL
          AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE active_pid = pid AND slot_type = 'logical')
    ) AS standbys,
    (
        SELECT coalesce(json_object_agg(slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint), '{{}}')
        FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL AND wal_status <> 'lost'
    ) AS kept
