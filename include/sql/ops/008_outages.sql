-- The ops database, part 8: outages that the monitor has seen, from the first bad look to the first of ten good ones.

CREATE TABLE ops.outages (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject      text NOT NULL,             -- name of the endpoint, as in ops.health_samples
    kind         text NOT NULL CHECK (kind IN ('down', 'slow', 'unclear')),
    began_at     timestamptz NOT NULL,      -- first bad look
    last_good_at timestamptz,               -- NULL: never seen well
    opened_at    timestamptz NOT NULL DEFAULT now(),  -- when it was decided
    ended_at     timestamptz,               -- NULL: still on; else the first of the good looks that ended it
    why          text NOT NULL,             -- what the last look has shown
    p95          real,                      -- milliseconds, as last told by /metrics
    run          text NOT NULL DEFAULT '',  -- of incident; '': none has taken it yet
    muted_until  timestamptz,               -- end of the maintenance window in which it was opened
    muted_by     text                       -- the release whose window that was
);

CREATE UNIQUE INDEX outages_open ON ops.outages (subject) WHERE ended_at IS NULL;
CREATE INDEX outages_began ON ops.outages (subject, began_at);
