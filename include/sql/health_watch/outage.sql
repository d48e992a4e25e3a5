SELECT * FROM ops.outages WHERE id = %(id)s
