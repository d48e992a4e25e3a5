-- The ops database, part 5: what was seen of an application, look by look.

CREATE TABLE ops.health_samples (
    subject text NOT NULL,                  -- environment, or release/<id>
    at      timestamptz NOT NULL,
    state   text NOT NULL CHECK (state IN ('healthy', 'unhealthy', 'unknown')),
    ms      real NOT NULL,                  -- time of the answer
    facts   json NOT NULL,                  -- figures beside it
    PRIMARY KEY (subject, at)               -- a look that is stored again is the same look
);
