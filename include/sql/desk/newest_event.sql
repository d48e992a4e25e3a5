-- The newest entry of Airflow's event log that is there to be seen; 0 when there is none.
SELECT coalesce(max(id), 0) FROM log
