-- Rows whose numbers are one number in different spellings, by key; a unique blind index would refuse them. ACCESS SHARE,
-- one pass over the table. The expression says in SQL what envelope.normalise says in Python; a test holds them equal.
SELECT array_agg({key}::bigint ORDER BY {key})
FROM (SELECT {key}, translate({plaintext}, E' \t-().', '') AS bare FROM {source} WHERE {plaintext} IS NOT NULL) AS users
GROUP BY (
    CASE
        WHEN bare ~ '^0[1-9][0-9]{{8}}$' THEN '+254' || substr(bare, 2)
        WHEN bare ~ '^254[1-9][0-9]{{8}}$' THEN '+' || bare
        WHEN bare ~ '^00[1-9][0-9]{{7,14}}$' THEN '+' || substr(bare, 3)
        ELSE bare
    END
) COLLATE "C"
HAVING count(*) > 1
ORDER BY 1
LIMIT %(limit)s
