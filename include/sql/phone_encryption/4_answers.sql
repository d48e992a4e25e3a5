-- All ranges of a snapshot with their answers, in their order.
SELECT low, high, rows, part FROM {state}.spans
WHERE subject = %(subject)s AND snapshot = %(snapshot)s AND part IS NOT NULL ORDER BY low
