INSERT INTO ops.deploys (release, kind, commit, key, token)
VALUES (%(release)s, %(kind)s, %(commit)s, %(key)s, %(token)s)
ON CONFLICT (release, kind) DO NOTHING
