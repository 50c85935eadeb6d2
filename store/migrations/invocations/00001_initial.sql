-- +goose Up
-- Times are microseconds since 1970 in UTC, durations nanoseconds.
CREATE TABLE invocations (
    id            TEXT PRIMARY KEY,
    function      TEXT NOT NULL,
    version       INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    method        TEXT NOT NULL,
    path          TEXT NOT NULL,
    status        INTEGER NOT NULL,
    error_code    TEXT NOT NULL,
    error_message TEXT NOT NULL,
    cold          INTEGER NOT NULL,
    started_at    INTEGER NOT NULL,
    queue_ns      INTEGER NOT NULL,
    start_ns      INTEGER NOT NULL,
    init_ns       INTEGER NOT NULL,
    run_ns        INTEGER NOT NULL,
    bytes_in      INTEGER NOT NULL,
    bytes_out     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX invocations_function ON invocations (function, id);
CREATE INDEX invocations_started_at ON invocations (started_at);

-- +goose Down
DROP TABLE invocations;
