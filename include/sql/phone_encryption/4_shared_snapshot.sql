-- The snapshot that a run shares, and how far its readers are: ranges without an answer, rows answered, and how long it
-- took to the last answer.
SELECT layout, id, point, lsn, last, rows_estimated,
       (SELECT count(*) FROM {state}.spans WHERE spans.subject = snapshots.subject AND part IS NULL),
       (SELECT coalesce(sum(rows), 0)::bigint FROM {state}.spans
        WHERE spans.subject = snapshots.subject AND part IS NOT NULL),
       (SELECT coalesce(extract(epoch FROM max(answered_at) - began_at), 0)::float8 FROM {state}.spans
        WHERE spans.subject = snapshots.subject)
FROM {state}.snapshots WHERE subject = %(subject)s AND run = %(run)s
