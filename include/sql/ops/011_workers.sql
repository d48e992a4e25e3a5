-- The ops database, part 11: what it takes that workers are not its owner (grants.sql says what each role may).

-- A session ends by its own role or by one that has its privileges; whoever finds a lease expired is neither, so the
-- owner does it. Null: there is none to end.
CREATE FUNCTION ops.end_expired_holder(lease text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_terminate_backend(l.backend_pid)
    FROM ops.leases AS l
    JOIN pg_stat_activity AS a ON a.pid = l.backend_pid AND a.backend_start <= l.acquired_at
    WHERE l.name = lease AND l.expires_at < now()
$$;

-- Items of a release ask people from the queue that measures them, so these two roles write answers; of releases only.
-- Everybody reads. The owner, who asks for everything else, is under no policy.
ALTER TABLE ops.approvals ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON ops.approvals FOR SELECT USING (true);
CREATE POLICY ask ON ops.approvals USING (
    starts_with(run, 'release/')
    AND (current_user = 'payme_ops_release'
         OR current_user = 'payme_ops_restore' AND gate IN ('migrations_tested', 'backup_scheduled'))
);
