-- How busy the server is, from the views of statistics. Without pg_monitor (or pg_read_all_stats) the queries of other
-- roles cannot be seen: `sees_all` says so.
SELECT
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS available,
    (
        SELECT count(*)
        FROM pg_stat_activity
        WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
            AND application_name NOT LIKE 'payme_ops:%%' AND application_name <> 'pg_dump'
            AND now() - query_start > make_interval(secs => %(query_seconds)s)
    ) AS slow_queries,
    (
        SELECT count(*)
        FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND now() - state_change > make_interval(secs => %(lock_seconds)s)
    ) AS lock_waits,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all
