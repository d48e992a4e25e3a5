SELECT
    t.thread_ts,
    now() - t.last_sent_at AS quiet,
    (
        SELECT a.severity FROM ops.alerts AS a
        WHERE a.key = t.key AND a.sent_at IS NOT NULL AND NOT a.notice
        ORDER BY a.id DESC
        LIMIT 1
    ) AS before                             -- how grave the message before was
FROM ops.alert_threads AS t
WHERE t.key = %(key)s AND t.channel = %(channel)s
