-- Before a change of the table, in its transaction: a lock that stops neither readers nor writers, waited for long enough
-- that an autovacuum of the table, which a backfill is sure to call, gives way by itself (after deadlock_timeout). None
-- can begin while we hold it. What the change itself needs is then waited for as shortly as ddl.py says.
SET LOCAL lock_timeout = '3s';
LOCK TABLE {relation} IN SHARE UPDATE EXCLUSIVE MODE;
