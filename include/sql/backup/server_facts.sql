SELECT current_setting('server_version') AS version,
       current_database() AS database,
       pg_is_in_recovery() AS in_recovery,
       pg_database_size(current_database()) AS size_bytes,
       pg_encoding_to_char(d.encoding) AS encoding,
       d.datcollate AS collate
FROM pg_database AS d
WHERE d.datname = current_database()
