-- What must outlast a clean: the oldest entry of the event log that no export has, and the oldest run that has not
-- ended. `airflow db clean` looks at times only, and would delete either.
SELECT
    (SELECT min(dttm) FROM log WHERE id > %(upto)s) AS unexported,
    (SELECT min(start_date) FROM dag_run WHERE state NOT IN ('success', 'failed')) AS unfinished
