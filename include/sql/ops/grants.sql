-- What those who are not its owner may do in the ops database. Made anew by every `ops-db migrate` on a server that has
-- these roles (include/sql/grants/ops_database.sql). What was found and what was answered is added to and never changed.

GRANT USAGE ON SCHEMA ops TO payme_ops_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA ops TO payme_ops_worker;
GRANT INSERT ON ops.evidence, ops.releases, ops.alert_acknowledgements TO payme_ops_worker;
GRANT INSERT, UPDATE ON
    ops.leases, ops.terms, ops.deploys, ops.alerts, ops.alert_threads, ops.alert_silences, ops.outages, ops.uptime_sums
TO payme_ops_worker;
GRANT INSERT, DELETE ON ops.health_samples TO payme_ops_worker;

-- These two are members of payme_ops_worker. Which answers they may write: 011_workers.sql.
GRANT INSERT, UPDATE (choice, responder, reason, responded_at) ON ops.approvals TO payme_ops_restore, payme_ops_release;
