-- Count, bytes and content of large objects, read in pieces of 1 MiB so that no object is held whole.
-- x'40000' is INV_READ; whence 2 seeks to the end.
WITH object AS MATERIALIZED (
    SELECT oid, lo_lseek64(fd, 0, 2) AS bytes, lo_close(fd) AS closed
    FROM (SELECT oid, lo_open(oid, x'40000'::integer) AS fd FROM pg_largeobject_metadata OFFSET 0) AS opened
)
SELECT (SELECT count(*) FROM object) AS count,
       (SELECT coalesce(sum(bytes), 0) FROM object)::bigint AS bytes,
       (
           SELECT sum(hash_record_extended(ROW(o.oid, piece, lo_get(o.oid, piece, 1048576)), 0))
           FROM object AS o
           CROSS JOIN LATERAL generate_series(0, o.bytes, 1048576) AS piece
       )::text AS content_hash
