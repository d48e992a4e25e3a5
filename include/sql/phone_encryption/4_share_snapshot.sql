-- Hand a snapshot that is held, and its ranges of keys, to readers on any worker: all of it at once. Our own tables only.
WITH held AS (
    INSERT INTO {state}.snapshots (subject, run, id, point, lsn, last, rows_estimated, layout)
    VALUES (%(subject)s, %(run)s, %(id)s, %(point)s, %(lsn)s, %(last)s, %(rows_estimated)s, %(layout)s)
)
INSERT INTO {state}.spans (subject, snapshot, low, high, rows)
SELECT %(subject)s, %(id)s, low, high, rows
FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[], %(counts)s::bigint[]) AS span (low, high, rows)
