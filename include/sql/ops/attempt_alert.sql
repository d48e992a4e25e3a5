-- Before Slack is called. Whoever finds it unsent later looks for it there, from the first attempt on.
UPDATE ops.alerts
SET attempted_at = coalesce(attempted_at, now()), attempted_in = %(thread)s
WHERE id = %(id)s
