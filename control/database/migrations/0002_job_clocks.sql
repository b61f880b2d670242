-- Up to which instant a job's schedule was looked after: what was due until then has begun or was passed over.
CREATE TABLE job_clocks (
    job TEXT NOT NULL PRIMARY KEY REFERENCES configuration (id) ON DELETE CASCADE,
    handled_ms BIGINT NOT NULL
);
