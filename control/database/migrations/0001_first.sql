-- What a new database has. Portable: TEXT, BIGINT, no types of one engine. Ids are 32 hexadecimal
-- digits and sort by time; times are milliseconds since 1970. A migration never changes once released.
CREATE TABLE installation (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE configuration (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (kind, name)
);
CREATE TABLE configuration_uses (
    user_id TEXT NOT NULL REFERENCES configuration (id) ON DELETE CASCADE,
    field TEXT NOT NULL,
    used_id TEXT NOT NULL REFERENCES configuration (id) ON DELETE RESTRICT,
    PRIMARY KEY (user_id, field, used_id)
);
CREATE INDEX configuration_uses_used ON configuration_uses (used_id);

CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE secrets (
    owner_kind TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    field TEXT NOT NULL,
    key_id TEXT NOT NULL,
    sealed TEXT NOT NULL,
    PRIMARY KEY (owner_kind, owner_id, field)
);

CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    last_used_ms BIGINT
);
CREATE TABLE enrolments (
    hash TEXT NOT NULL PRIMARY KEY,
    mover TEXT NOT NULL,
    role TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    used_ms BIGINT
);
CREATE TABLE movers (
    pin TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    revoked_ms BIGINT,
    certificate_expires_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX movers_name ON movers (name) WHERE revoked_ms IS NULL;

CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    job TEXT,
    name TEXT NOT NULL,
    begun_by TEXT NOT NULL,
    requested_by TEXT,
    state TEXT NOT NULL,
    result TEXT,
    reason TEXT,
    created_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT,
    totals TEXT NOT NULL,
    document TEXT NOT NULL,
    CHECK ((state = 'finished') = (result IS NOT NULL))
);
CREATE INDEX sessions_job ON sessions (job, id);
CREATE INDEX sessions_state ON sessions (state, id);
CREATE TABLE vm_runs (
    id TEXT NOT NULL PRIMARY KEY,
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    vm TEXT NOT NULL,
    vm_uuid TEXT,
    attempt BIGINT NOT NULL,
    state TEXT NOT NULL,
    document TEXT NOT NULL,
    result TEXT,
    reason TEXT,
    point TEXT,
    created_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT,
    UNIQUE (session, vm_uuid, attempt)
);
CREATE INDEX vm_runs_session ON vm_runs (session, id);
CREATE INDEX vm_runs_unfinished ON vm_runs (id) WHERE result IS NULL;
CREATE TABLE tasks (
    id TEXT NOT NULL PRIMARY KEY,
    vm_run TEXT NOT NULL REFERENCES vm_runs (id) ON DELETE CASCADE,
    disk TEXT NOT NULL,
    proxy TEXT,
    repository TEXT,
    mode TEXT,
    state TEXT NOT NULL,
    numbers TEXT NOT NULL,
    reasons TEXT NOT NULL
);
CREATE INDEX tasks_vm_run ON tasks (vm_run, id);
CREATE TABLE events (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    time_ms BIGINT NOT NULL,
    severity TEXT NOT NULL,
    vm TEXT,
    disk TEXT,
    text TEXT NOT NULL,
    PRIMARY KEY (session, number)
);
