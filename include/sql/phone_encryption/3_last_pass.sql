-- The highest number that a pass had.
SELECT coalesce(max(pass_number), 0) FROM {state}.progress WHERE subject = %(subject)s AND work = %(work)s
