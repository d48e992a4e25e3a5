-- The ops database, part 3: what people were asked, and what they answered.

CREATE TABLE ops.approvals (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run          text NOT NULL,              -- dag_id/run_id
    gate         text NOT NULL,              -- task that asks
    digest       text NOT NULL,              -- sha256 of the evidence that was shown
    requested_by text NOT NULL,              -- who triggered the run; empty: the scheduler
    asked_at     timestamptz NOT NULL DEFAULT now(),
    choice       text,                       -- NULL: nobody has answered yet
    responder    text NOT NULL DEFAULT '',   -- empty with a choice: the time was over
    reason       text NOT NULL DEFAULT '',   -- break-glass: why one person decided alone
    responded_at timestamptz
);

CREATE INDEX approvals_run_gate ON ops.approvals (run, gate, id DESC);
