-- Smallest and largest key (from the primary key's two ends), and keys in between that part the rows evenly, as ANALYZE
-- last saw them; none without statistics.
SELECT min({key})::bigint, max({key})::bigint, coalesce((
    SELECT histogram_bounds::text::bigint[] FROM pg_stats
    WHERE schemaname = %(schema)s AND tablename = %(table)s AND attname = %(key)s AND NOT inherited
), '{{}}')
FROM {relation}
