-- Outages that no run of incident has taken; also of those that are over, since the event may have been lost meanwhile.
SELECT id, subject FROM ops.outages WHERE run = '' AND opened_at > %(now)s - interval '1 day' ORDER BY id
