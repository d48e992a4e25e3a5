-- The ops database, part 10: who has seen an alert, what is kept quiet for a while, and what may have gone out already.

ALTER TABLE ops.alerts
    ADD COLUMN attempted_at timestamptz,    -- noted before Slack is called; with sent_at NULL: it may have gone out,
    ADD COLUMN attempted_in text NOT NULL DEFAULT '',       -- into this thread, '' for none
    ADD COLUMN notice       boolean NOT NULL DEFAULT false, -- says who has seen an alert, and is none itself
    -- What a reminder reminds of: outage/7/still/30 is of outage/7.
    ADD COLUMN episode      text NOT NULL GENERATED ALWAYS AS (regexp_replace(occurrence, '/still/[0-9]+$', '')) STORED;

ALTER TABLE ops.alert_threads
    ADD COLUMN channel_id   text NOT NULL DEFAULT '';       -- Slack's id of the channel, as it answered

CREATE TABLE ops.alert_acknowledgements (
    key     text NOT NULL,
    episode text NOT NULL,
    by      text NOT NULL,
    why     text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key, episode)              -- who came first has seen it
);

CREATE TABLE ops.alert_silences (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key      text NOT NULL,                 -- of alerts; with a * at its end, of all whose key begins so
    reason   text NOT NULL CHECK (length(reason) >= 10),
    by       text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    until    timestamptz NOT NULL,
    ended_at timestamptz,                   -- NULL: its end has not been told
    CHECK (until <= began_at + interval '4 hours 5 minutes')  -- who says four hours may have another clock
);

CREATE UNIQUE INDEX alert_silences_not_ended ON ops.alert_silences (key) WHERE ended_at IS NULL;
