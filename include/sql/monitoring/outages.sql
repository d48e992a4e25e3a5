-- Outages of each period and the seconds of them that fall into it; one that goes on lasts until `now`.
SELECT
    p.number,
    o.kind,
    count(*),
    sum(extract(epoch FROM least(coalesce(o.ended_at, %(now)s), p.until) - greatest(o.began_at, p.since)))::float8
FROM unnest(%(since)s::timestamptz[], %(until)s::timestamptz[]) WITH ORDINALITY AS p (since, until, number)
JOIN ops.outages AS o
    ON o.subject = %(subject)s AND o.began_at < least(p.until, %(now)s) AND coalesce(o.ended_at, %(now)s) > p.since
GROUP BY p.number, o.kind
ORDER BY p.number, o.kind
