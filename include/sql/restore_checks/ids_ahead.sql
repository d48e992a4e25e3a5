-- rule: the next id of users, merchants and transactions is one that no row has
-- needs: public.users, public.merchants, public.transactions
-- means: the first payment after a restore would fail with a duplicate key. Sequences were lost or are behind.
SELECT count(*) AS violations
FROM (
    SELECT pg_get_serial_sequence('public.users', 'id') AS sequence, (SELECT max(id) FROM public.users) AS highest
    UNION ALL SELECT pg_get_serial_sequence('public.merchants', 'id'), (SELECT max(id) FROM public.merchants)
    UNION ALL SELECT pg_get_serial_sequence('public.transactions', 'id'), (SELECT max(id) FROM public.transactions)
) AS each
WHERE highest IS NOT NULL
  AND coalesce(pg_sequence_last_value(sequence::regclass), 0) < highest
