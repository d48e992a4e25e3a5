-- The snapshot that was shared last, with its ranges and their answers. Waits for readers that are at a range.
DELETE FROM {state}.snapshots WHERE subject = %(subject)s
