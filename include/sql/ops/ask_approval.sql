INSERT INTO ops.approvals (run, gate, digest, requested_by)
VALUES (%(run)s, %(gate)s, %(digest)s, %(requested_by)s)
