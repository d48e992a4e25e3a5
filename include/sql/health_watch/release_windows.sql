-- Maintenance windows that are open: of releases that are at work (their term is renewed), within the form's window.
SELECT r.request ->> 'environment' AS subject, r.id AS release, (r.request ->> 'window_to')::timestamptz AS until
FROM ops.terms AS t
JOIN ops.releases AS r
    ON t.holder = 'release/' || r.id AND t.name = 'release:' || (r.request ->> 'environment')
WHERE t.ended_at IS NULL
    AND t.expires_at > %(now)s
    AND (r.request ->> 'window_from')::timestamptz <= %(now)s
    AND (r.request ->> 'window_to')::timestamptz > %(now)s
