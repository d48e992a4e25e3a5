-- Pause, resume or abort: the word that a backfill reads before its next batch.
INSERT INTO {state}.control (subject, word, reason, said_by) VALUES (%(subject)s, %(word)s, %(reason)s, %(said_by)s)
ON CONFLICT (subject) DO UPDATE SET word = excluded.word, reason = excluded.reason, said_by = excluded.said_by,
    said_at = now()
