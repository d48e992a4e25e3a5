-- One sender per key at a time: two would each begin a thread, or send the same message. The session's, not the
-- transaction's: the attempt is committed while it is held. It ends with the session, too.
SELECT pg_advisory_lock(hashtextextended('payme_ops alert ' || %(key)s, 0))
