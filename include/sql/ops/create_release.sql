-- Run again it finds the release it made.
INSERT INTO ops.releases (id, pre_run, requester, request)
VALUES (%(id)s, %(pre_run)s, %(requester)s, %(request)s)
ON CONFLICT DO NOTHING
