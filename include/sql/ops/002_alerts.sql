-- The ops database, part 2: what people were told, and what they still have to be told.

CREATE TABLE ops.alerts (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key             text NOT NULL,          -- one key is one Slack thread, for example run_failed:backup_daily
    occurrence      text NOT NULL,          -- what is told once, for example one failed run
    severity        text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    what            text NOT NULL,
    why             text NOT NULL,
    since           timestamptz NOT NULL,
    next            text NOT NULL,
    owner           text NOT NULL,
    runbook         text NOT NULL,
    link            text NOT NULL,
    raised_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,            -- NULL: Slack has not taken it yet
    slack_ts        text,                   -- Slack's id of the message
    attempts        integer NOT NULL DEFAULT 0,
    last_error      text NOT NULL DEFAULT '',
    sentry_event_id text,                   -- NULL: no Sentry event was captured for it
    UNIQUE (key, occurrence)
);

CREATE INDEX alerts_unsent ON ops.alerts (key, id) WHERE sent_at IS NULL;

CREATE TABLE ops.alert_threads (
    key          text NOT NULL,
    channel      text NOT NULL,             -- a key moves to a new thread when the channel setting changes
    thread_ts    text NOT NULL,             -- Slack's id of the thread's first message
    last_sent_at timestamptz NOT NULL,
    PRIMARY KEY (key, channel)
);
