-- A run takes what it was told of and what nobody has taken; one that is tried again finds its own.
UPDATE ops.outages SET run = %(run)s
WHERE run = %(run)s OR (run = '' AND (ended_at IS NULL OR id = ANY(%(ids)s)))
RETURNING id
