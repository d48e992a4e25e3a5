-- The word that holds for the backfill.
SELECT word, reason, said_by, said_at FROM {state}.control WHERE subject = %s
