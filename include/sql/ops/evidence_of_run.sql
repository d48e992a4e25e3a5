SELECT item, verdict, measured, threshold, actor, started, ended, source, sha256, remedy, id
FROM ops.evidence
WHERE run = %s
ORDER BY id
