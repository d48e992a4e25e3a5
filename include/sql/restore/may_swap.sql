-- Whether this role can do all of a swap before it begins one.
SELECT
    (SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user) AS creates_databases,
    pg_has_role('pg_signal_backend', 'USAGE') AS ends_sessions,
    coalesce(has_function_privilege(to_regprocedure('payme_restore.copy_settings(name,name)'), 'EXECUTE'), false) AS copies_settings,
    coalesce((SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = %(name)s), true) AS owns_target
