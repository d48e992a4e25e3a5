-- What the table itself says of the same entries, to compare with what was exported.
SELECT count(*), coalesce(min(id), 0), coalesce(max(id), 0), min(dttm), max(dttm)
FROM log
WHERE id > %(after)s AND id <= %(upto)s
