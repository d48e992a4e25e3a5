-- The ops database, part 9: what the looks of a day and of a month came to; kept when the looks are deleted.

CREATE TABLE ops.uptime_sums (
    subject          text NOT NULL,
    period           text NOT NULL CHECK (period IN ('day', 'month')),
    begins           date NOT NULL,         -- a day of Nairobi; of a month the first
    interval_seconds real NOT NULL,
    expected         integer NOT NULL,      -- slots in which somebody should have looked
    stored           integer NOT NULL,      -- rows that it was made of
    taken            integer NOT NULL,      -- slots in which somebody did
    healthy          integer NOT NULL,
    unhealthy        integer NOT NULL,
    unknown          integer NOT NULL,
    p50              real,                  -- milliseconds of healthy answers; NULL: there was none
    p95              real,
    p99              real,
    app_p95          real,                  -- median of what the application told; NULL: it told nothing
    first_at         timestamptz NOT NULL,
    last_at          timestamptz NOT NULL,
    gaps             json NOT NULL,         -- of a day: [[from, to, goes on after midnight], ...]
    summed_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, period, begins)
);
