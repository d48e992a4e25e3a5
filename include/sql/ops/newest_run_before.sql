-- The newest run of a DAG that recorded this item before then.
SELECT run, started
FROM ops.evidence
WHERE run LIKE %(prefix)s AND item = %(item)s AND started < %(before)s
ORDER BY id DESC
LIMIT 1
