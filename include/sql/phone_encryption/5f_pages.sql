-- Pages of the table that hold one of the values anywhere, deleted rows and dropped columns included. Needs pageinspect
-- and a superuser; reads the whole file.
SELECT count(*) FROM generate_series(0, pg_relation_size(to_regclass(%(relation)s)) / current_setting('block_size')::int - 1)
    AS number, LATERAL get_raw_page(%(relation)s, number) AS page
WHERE EXISTS (SELECT FROM unnest(%(values)s::bytea[]) AS value WHERE position(value IN page) > 0)
