SELECT release, kind, commit, key, token, intended_at, posted_at, outcome, settled_at
FROM ops.deploys
WHERE release = %(release)s AND kind = %(kind)s
