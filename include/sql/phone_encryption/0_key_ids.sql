-- Key ids of some stored ciphertexts, from the newest rows: enough to see that the application uses another key. What is
-- no key id is not shown.
SELECT DISTINCT coalesce(substring({stored} FROM '^v[0-9]+:([a-z0-9]{{1,16}}):'), 'malformed')
FROM (SELECT {stored} FROM {relation} WHERE {stored} IS NOT NULL ORDER BY {key} DESC LIMIT 1000) AS newest
ORDER BY 1
