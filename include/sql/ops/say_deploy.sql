UPDATE ops.deploys
SET outcome = %(outcome)s, settled_at = CASE WHEN %(outcome)s IN ('done', 'failed') THEN now() ELSE settled_at END
WHERE release = %(release)s AND kind = %(kind)s
