-- What the migrate role needs beside its memberships: the owner of the table that is migrated (NULL: there is no such
-- table), and that its backfill may keep the table's own triggers from firing; before PostgreSQL 15 only a superuser can.
SELECT
    (SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = to_regclass(%(table)s)) AS owner,
    current_setting('server_version_num')::int < 150000
        OR has_parameter_privilege('session_replication_role', 'SET') AS sets_replication_role
