-- What was found in a range; in the transaction that claimed it.
UPDATE {state}.spans SET part = %(part)s, answered_at = clock_timestamp()
WHERE subject = %(subject)s AND snapshot = %(snapshot)s AND low = %(low)s
