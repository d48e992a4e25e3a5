-- Passes whose results are gone, or did not hold: the next one begins anew.
DELETE FROM {state}.progress WHERE subject = %(subject)s AND work = %(work)s
  AND (%(pass_number)s::integer IS NULL OR pass_number = %(pass_number)s AND low = %(low)s AND high = %(high)s)
