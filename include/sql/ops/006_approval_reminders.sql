-- The ops database, part 6: whom to remind of what was asked.

ALTER TABLE ops.approvals
    ADD COLUMN subject    text NOT NULL DEFAULT '',
    ADD COLUMN link       text NOT NULL DEFAULT '',      -- where it is answered
    ADD COLUMN thread     text NOT NULL DEFAULT '',      -- key of the alert that it was told under
    ADD COLUMN expires_at timestamptz;                   -- NULL: nobody is reminded
