INSERT INTO ops.health_samples (subject, at, state, ms, facts)
VALUES (%(subject)s, %(at)s, %(state)s, %(ms)s, %(facts)s)
ON CONFLICT DO NOTHING
