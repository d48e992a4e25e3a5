UPDATE ops.alerts SET attempts = attempts + 1, last_error = %(error)s WHERE id = %(id)s
