SELECT name, (SELECT max(at) FROM ops.health_samples WHERE subject = name)
FROM unnest(%(subjects)s::text[]) AS name
ORDER BY name
