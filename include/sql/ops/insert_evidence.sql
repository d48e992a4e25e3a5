INSERT INTO ops.evidence (run, item, verdict, measured, threshold, actor, started, ended, source, sha256, remedy)
VALUES (%(run)s, %(item)s, %(verdict)s, %(measured)s, %(threshold)s, %(actor)s, %(started)s, %(ended)s, %(source)s,
        %(sha256)s, %(remedy)s)
