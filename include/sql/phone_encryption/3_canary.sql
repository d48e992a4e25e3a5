-- What the application does all day, to see how long it takes now: one row by its key.
SELECT {key} FROM {relation} WHERE {key} >= %s ORDER BY {key} LIMIT 1
