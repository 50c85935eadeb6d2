-- +goose Up
-- Calls with an idempotency key and their responses. Times are microseconds
-- since 1970 in UTC.
CREATE TABLE kept (
    key         TEXT PRIMARY KEY,
    function    TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state       TEXT NOT NULL,
    status      INTEGER NOT NULL DEFAULT 0,
    header      TEXT NOT NULL DEFAULT '{}', -- JSON
    body        BLOB NOT NULL DEFAULT x'',
    bytes       INTEGER NOT NULL DEFAULT 0, -- of the body
    created_at  INTEGER NOT NULL
) STRICT;

CREATE INDEX kept_function ON kept (function, created_at);
CREATE INDEX kept_created_at ON kept (created_at);

-- +goose Down
DROP TABLE kept;
