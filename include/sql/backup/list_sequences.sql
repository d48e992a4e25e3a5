-- Not part of any snapshot: a later dump may hold a higher value, never a lower one.
SELECT schemaname AS schema, sequencename AS name, last_value
FROM pg_sequences
ORDER BY schemaname COLLATE "C", sequencename COLLATE "C"
