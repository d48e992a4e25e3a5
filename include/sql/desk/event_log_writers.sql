-- Transactions that have written to Airflow's event log and not ended, or are about to write. An entry gets its number
-- after its transaction has taken this lock, and can be seen when that has ended: so when all that are here now have
-- ended, no entry can turn up any more below the newest that could be seen before. Waits for nobody, stops nobody.
SELECT virtualtransaction
FROM pg_locks
WHERE relation = 'log'::regclass
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND mode = 'RowExclusiveLock' AND granted
