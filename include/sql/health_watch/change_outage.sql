UPDATE ops.outages
SET kind = %(kind)s, why = %(why)s, muted_until = %(muted_until)s, muted_by = %(muted_by)s
WHERE id = %(id)s AND ended_at IS NULL
