-- The ops database, part 1: who holds what, and what was measured.

CREATE TABLE ops.leases (
    name        text PRIMARY KEY,           -- snapshot:<db>, ddl:<db>, release:<env>
    holder      text NOT NULL,              -- run that holds or held it
    token       bigint NOT NULL,            -- fencing token, grows with every acquisition
    acquired_at timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,       -- renewed by the holder; past it the session may be ended by the next one
    backend_pid integer NOT NULL            -- session that keeps the advisory lock
);

CREATE TABLE ops.evidence (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run        text NOT NULL,               -- dag_id/run_id, or cli/<time>/<pid>
    item       text NOT NULL,
    verdict    text NOT NULL CHECK (verdict IN ('pass', 'fail', 'inconclusive', 'bypassed')),
    measured   json NOT NULL,               -- not jsonb, which rewrites numbers: sha256 is over what was measured
    threshold  text NOT NULL,
    actor      text NOT NULL,
    started    timestamptz NOT NULL,
    ended      timestamptz NOT NULL,
    source     text NOT NULL,
    sha256     text NOT NULL,
    remedy     text NOT NULL
);

CREATE INDEX evidence_run_item ON ops.evidence (run, item, id DESC);
