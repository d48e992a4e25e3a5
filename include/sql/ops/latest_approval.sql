SELECT run, gate, digest, requested_by, choice, responder, reason, asked_at, responded_at
FROM ops.approvals
WHERE run = %(run)s AND gate = %(gate)s
ORDER BY id DESC
LIMIT 1
