UPDATE ops.outages SET ended_at = %(ended_at)s WHERE id = %(id)s AND ended_at IS NULL
