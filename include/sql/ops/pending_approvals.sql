-- Questions to people that stand without an answer, the first to expire first. Who asked again waits for the newer alone.
SELECT asked.run, asked.gate, asked.subject, asked.asked_at, asked.expires_at
FROM ops.approvals AS asked
WHERE asked.choice IS NULL
    AND asked.expires_at > now()
    AND NOT EXISTS (
        SELECT FROM ops.approvals AS newer
        WHERE newer.run = asked.run AND newer.gate = asked.gate AND newer.id > asked.id
    )
ORDER BY asked.expires_at, asked.id
