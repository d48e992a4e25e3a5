SELECT id, requester, created_at, request FROM ops.releases WHERE id = %s
