SELECT run, gate, digest, requested_by, choice, responder, reason, asked_at, responded_at
FROM (
    SELECT DISTINCT ON (gate) *
    FROM ops.approvals
    WHERE run = %(run)s
    ORDER BY gate, id DESC
) AS newest
ORDER BY id
