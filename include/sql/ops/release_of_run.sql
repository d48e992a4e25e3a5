SELECT id, requester, created_at, request FROM ops.releases WHERE pre_run = %s
