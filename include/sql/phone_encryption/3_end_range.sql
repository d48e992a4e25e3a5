-- A range of a pass is done; what it came to is kept.
UPDATE {state}.progress SET ended_at = coalesce(ended_at, now())
WHERE subject = %(subject)s AND work = %(work)s AND pass_number = %(pass_number)s AND low = %(low)s AND high = %(high)s
RETURNING rows, written, refused, faults, faulty
