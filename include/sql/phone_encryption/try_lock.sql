-- Before any change of the table, in its transaction. First a lock that stops neither readers nor writers, waited for
-- long enough that an autovacuum of the table, which a backfill is sure to call, gives way by itself (after
-- deadlock_timeout); none can begin while we hold it. Then whatever the change needs, waited for 0.2 s at most: everybody
-- who comes after us stands behind us as long. A process that stands still with a lock loses its session, and so the lock.
SET LOCAL idle_in_transaction_session_timeout = '2s';
SET LOCAL lock_timeout = '3s';
LOCK TABLE {relation} IN SHARE UPDATE EXCLUSIVE MODE;
SET LOCAL lock_timeout = '200ms';
