-- A range that nobody reads yet. It is this session's until its transaction ends, and free again when its reader is killed.
SELECT low, high, rows FROM {state}.spans
WHERE subject = %(subject)s AND snapshot = %(snapshot)s AND part IS NULL
ORDER BY low LIMIT 1 FOR UPDATE SKIP LOCKED
