-- Begin a range of a pass, or go on where it was left.
INSERT INTO {state}.progress (subject, work, pass_number, low, high, done_to)
VALUES (%(subject)s, %(work)s, %(pass_number)s, %(low)s, %(high)s, %(low)s)
ON CONFLICT (subject, work, pass_number, low, high) DO UPDATE SET began_at = progress.began_at
RETURNING done_to, rows, written, refused, ended_at IS NOT NULL
