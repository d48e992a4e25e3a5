-- The ops database, part 4: releases, and leases that live by being renewed.

-- What joins the three DAGs of a release; deployment and post_deployment have its id as their run id.
CREATE TABLE ops.releases (
    id         text PRIMARY KEY,
    pre_run    text NOT NULL UNIQUE,        -- run of pre_deployment that made it
    requester  text NOT NULL,               -- who triggered that run
    request    json NOT NULL,               -- the form
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Unlike a lease it has no session: a deferred task has none. It is held until it ends or expires, and one that expired
-- without an end is taken over, so that what it stands for (frozen orders) is not left lying.
CREATE TABLE ops.terms (
    name       text PRIMARY KEY,            -- freeze:<env>, release:<env>
    holder     text NOT NULL,               -- release/<id>, or who took it over
    token      bigint NOT NULL,             -- fencing token, grows with every other holder
    taken_at   timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz                  -- NULL: what it stands for has not ended
);
