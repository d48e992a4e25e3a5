UPDATE ops.alerts
SET attempts = attempts + 1, last_error = %(error)s, attempted_at = CASE WHEN %(maybe)s THEN attempted_at END
WHERE id = %(id)s
