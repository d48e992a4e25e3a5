-- How far the passes have come.
SELECT work, pass_number, count(*), count(ended_at), sum(rows)::bigint, sum(written)::bigint, sum(refused)::bigint
FROM {state}.progress WHERE subject = %s
GROUP BY work, pass_number ORDER BY min(began_at)
