-- rule: every transaction has its merchant and, when it names one, its user; every receipt and entry its transaction
-- needs: public.transactions, public.users, public.merchants, public.mpesa_receipts, ledger.entries
-- means: rows are missing that others refer to: the backup is not of one moment, or foreign keys were lost.
SELECT (SELECT count(*) FROM public.transactions AS t
        WHERE NOT EXISTS (SELECT FROM public.merchants AS m WHERE m.id = t.merchant_id)
           OR t.user_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.users AS u WHERE u.id = t.user_id))
     + (SELECT count(*) FROM public.mpesa_receipts AS r
        WHERE NOT EXISTS (SELECT FROM public.transactions AS t WHERE t.id = r.transaction_id))
     + (SELECT count(*) FROM ledger.entries AS e
        WHERE NOT EXISTS (SELECT FROM public.transactions AS t WHERE t.id = e.transaction_id))
       AS violations
