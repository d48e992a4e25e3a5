-- The table's own triggers that an UPDATE of the two columns fires in this session; under session_replication_role
-- `replica` only those that are enabled for it.
SELECT tgname::text FROM pg_trigger
WHERE tgrelid = to_regclass(%(relation)s) AND NOT tgisinternal AND tgtype & 16 <> 0
  AND tgenabled = ANY (CASE current_setting('session_replication_role')
                       WHEN 'replica' THEN '{{R,A}}'::"char"[] ELSE '{{O,A}}' END)
  AND (tgattr = '' OR EXISTS (
      SELECT FROM pg_attribute
      WHERE attrelid = tgrelid AND attname = ANY (%(columns)s) AND attnum = ANY (tgattr)
  ))
ORDER BY tgname
