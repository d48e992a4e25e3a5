-- Only one ever gets to post: committed before the call. After a kill in between nobody knows whether it was made.
UPDATE ops.deploys
SET posted_at = now(), outcome = 'unknown', token = %(token)s
WHERE release = %(release)s AND kind = %(kind)s AND (posted_at IS NULL OR outcome = 'not taken')
