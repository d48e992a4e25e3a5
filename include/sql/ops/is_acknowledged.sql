SELECT EXISTS (
    SELECT FROM ops.alert_acknowledgements
    WHERE key = %(key)s AND episode = regexp_replace(%(occurrence)s, '/still/[0-9]+$', '')
) AS seen
