SELECT current_setting('server_version') AS version,
       current_database() AS database,
       pg_is_in_recovery() AS in_recovery,
       pg_database_size(current_database()) AS size_bytes,
       pg_encoding_to_char(d.encoding) AS encoding,
       pg_get_userbyid(d.datdba) AS owner,
       d.datcollate AS collate,
       d.datctype AS ctype,
       -- The provider's columns came and were renamed between 15 and 17.
       coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS locale_provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', '') AS locale,
       -- By it a restore test knows that it is not on the server that was backed up.
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier
FROM pg_database AS d
WHERE d.datname = current_database()
