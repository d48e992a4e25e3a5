-- rule: an M-Pesa receipt number stands for one transaction, and a transaction has one receipt
-- needs: public.mpesa_receipts
-- means: a payment could be credited twice from this backup. The unique indexes were lost or were never valid.
SELECT (SELECT count(*) FROM (SELECT FROM public.mpesa_receipts GROUP BY receipt_no HAVING count(*) > 1) AS twice)
     + (SELECT count(*) FROM (SELECT FROM public.mpesa_receipts GROUP BY transaction_id HAVING count(*) > 1) AS two)
       AS violations
