-- Who keeps a statement on the table from its lock: who holds one there, and for CREATE INDEX CONCURRENTLY, which waits
-- for every older snapshot of the database, who has one. Names and times, never what they run.
SELECT DISTINCT coalesce(activity.pid::text, 'a prepared transaction') AS pid,
       coalesce(nullif(activity.application_name, ''), activity.backend_type, '') AS who,
       round(extract(epoch FROM now() - activity.xact_start))::int AS seconds
FROM pg_locks LEFT JOIN pg_stat_activity AS activity USING (pid)
WHERE granted AND pid IS DISTINCT FROM pg_backend_pid() AND (
    locktype = 'relation' AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND pg_locks.relation IN (to_regclass(%(relation)s)::oid, to_regclass(%(base)s)::oid)
    OR %(snapshots)s AND activity.datname = current_database() AND activity.backend_xmin IS NOT NULL
)
ORDER BY seconds DESC NULLS FIRST
LIMIT 5
