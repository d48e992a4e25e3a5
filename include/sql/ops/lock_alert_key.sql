-- One sender per key at a time: two would each begin a thread, or send the same message. Ends with the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('payme_ops alert ' || %(key)s, 0))
