-- What the steps remember, in the target database, so that it commits with the rows it speaks of. The schema belongs to
-- the table's owner. Made by whoever needs it first. Locks nothing of the application's.
-- IF NOT EXISTS does not wait for another that is just making the same: one at a time, until this transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('payme_migration', 0));

CREATE SCHEMA IF NOT EXISTS {state};

-- The backfill's cursors: one row for each range of each pass.
CREATE TABLE IF NOT EXISTS {state}.progress (
    subject text NOT NULL,                       -- public.users.phone_number
    work text NOT NULL CHECK (work IN ('encrypt', 'decrypt')),
    pass_number integer NOT NULL,
    low bigint NOT NULL,                         -- exclusive
    high bigint NOT NULL,                        -- inclusive
    done_to bigint NOT NULL,                     -- the cursor: rows up to this key have been looked at
    rows bigint NOT NULL DEFAULT 0,              -- found to need a write
    written bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,           -- changed, or locked by others, between read and write
    faults bigint NOT NULL DEFAULT 0,            -- cannot be decrypted
    faulty bigint[] NOT NULL DEFAULT '{{}}',       -- the first ids of those
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    PRIMARY KEY (subject, work, pass_number, low, high)
);

-- What a person said to the backfill, read before every batch. No row: it may run.
CREATE TABLE IF NOT EXISTS {state}.control (
    subject text PRIMARY KEY,
    word text NOT NULL CHECK (word IN ('run', 'pause', 'abort')),
    reason text NOT NULL,
    said_by text NOT NULL,
    said_at timestamptz NOT NULL DEFAULT now()
);

-- What step 5 took from the plaintext column, for the undo that puts it back exactly.
CREATE TABLE IF NOT EXISTS {state}.relaxed (
    subject text PRIMARY KEY,
    not_null boolean NOT NULL,
    uniques jsonb NOT NULL                       -- as 5b_unique_plaintext.sql answers them
);

-- Rights before the brown-out, as the catalogues had them.
CREATE TABLE IF NOT EXISTS {state}.saved_acl (
    subject text NOT NULL,
    column_name text NOT NULL,                   -- empty: the table
    acl text,
    PRIMARY KEY (subject, column_name)
);

-- The table's file when the plaintext was dropped: while it is the same, the plaintext still stands in its pages.
CREATE TABLE IF NOT EXISTS {state}.dropped (
    subject text PRIMARY KEY,
    file bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- The snapshot that a verification across workers holds, with what its readers and the gate need of it.
CREATE TABLE IF NOT EXISTS {state}.snapshots (
    subject text PRIMARY KEY,                    -- one at a time
    run text NOT NULL,                           -- only its tasks read it
    id text NOT NULL,                            -- as pg_export_snapshot() gave it
    point text NOT NULL,                         -- the transactions it sees
    lsn text NOT NULL,
    last bigint NOT NULL,                        -- its highest key
    rows_estimated bigint NOT NULL,
    layout jsonb NOT NULL,                       -- where the columns stand
    began_at timestamptz NOT NULL DEFAULT now()
);

-- Its ranges of keys, and what was found in each: counts, a keyed digest, ids; never a number.
CREATE TABLE IF NOT EXISTS {state}.spans (
    subject text NOT NULL REFERENCES {state}.snapshots ON DELETE CASCADE,
    snapshot text NOT NULL,
    low bigint NOT NULL,                         -- exclusive
    high bigint NOT NULL,                        -- inclusive
    rows bigint NOT NULL,
    part jsonb,
    answered_at timestamptz,
    PRIMARY KEY (subject, low)
);
