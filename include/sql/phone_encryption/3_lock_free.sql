-- Where somebody held a row of the batch for too long: lock the other ones, and wait for none. Their numbers may be
-- written then; the locked ones are left to a later pass. So the backfill is never part of a deadlock.
SELECT {key}::bigint FROM {relation} WHERE {key} = ANY (%(key)b::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
