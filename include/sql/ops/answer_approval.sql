-- Only the newest question, and only once: an answer is never changed.
UPDATE ops.approvals
SET choice = %(choice)s, responder = %(responder)s, reason = %(reason)s, responded_at = now()
WHERE id = (SELECT max(id) FROM ops.approvals WHERE run = %(run)s AND gate = %(gate)s)
    AND choice IS NULL
