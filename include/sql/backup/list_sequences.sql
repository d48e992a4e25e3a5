-- Not part of any snapshot: a later dump may be ahead of this, never behind.
SELECT schemaname AS schema, sequencename AS name, last_value, increment_by, cycle
FROM pg_sequences
ORDER BY schemaname COLLATE "C", sequencename COLLATE "C"
