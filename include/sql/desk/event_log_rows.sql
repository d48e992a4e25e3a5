-- Entries as JSON with all the columns that the table has, whatever Airflow's version: nothing is left out unnoticed.
SELECT id, to_jsonb(log)::text
FROM log
WHERE id > %(after)s AND id <= %(upto)s
ORDER BY id
