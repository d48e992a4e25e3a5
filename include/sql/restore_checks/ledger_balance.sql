-- rule: the entries of every transaction add up to 0
-- needs: ledger.entries
-- means: the books do not balance in this backup; money is missing or counted twice. Compare the named database with
--        the ledger in production before anything is restored from it.
SELECT count(*) AS violations
FROM (SELECT FROM ledger.entries GROUP BY transaction_id HAVING sum(amount) <> 0) AS unbalanced
