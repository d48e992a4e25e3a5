SELECT pg_advisory_unlock(hashtextextended('payme_ops alert ' || %(key)s, 0))
