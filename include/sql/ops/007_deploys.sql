-- The ops database, part 7: what was meant to be deployed, written down before it was posted.

CREATE TABLE ops.deploys (
    release     text NOT NULL REFERENCES ops.releases (id),
    kind        text NOT NULL CHECK (kind IN ('deploy', 'rollback')),
    commit      text NOT NULL,
    key         text NOT NULL UNIQUE,       -- the Idempotency-Key
    token       bigint NOT NULL,            -- fencing token of release:<env> at that time
    intended_at timestamptz NOT NULL DEFAULT now(),
    posted_at   timestamptz,                -- NULL: the API has not been called yet
    outcome     text NOT NULL DEFAULT '',   -- what the call came to: taken, refused, unknown; then done or failed
    settled_at  timestamptz,                -- when the commit was read back
    PRIMARY KEY (release, kind)             -- never twice
);
