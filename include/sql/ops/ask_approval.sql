INSERT INTO ops.approvals (run, gate, digest, requested_by, subject, link, thread, expires_at)
VALUES (%(run)s, %(gate)s, %(digest)s, %(requested_by)s, %(subject)s, %(link)s, %(thread)s, %(expires_at)s)
