-- Publications come back with the dump; who subscribed follows the old database's slots, not these.
SELECT pubname::text AS name FROM pg_publication ORDER BY 1
