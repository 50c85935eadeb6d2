-- +goose Up
-- Times are microseconds since 1970 in UTC; 0 means never.
CREATE TABLE schedules (
    function     TEXT NOT NULL,
    name         TEXT NOT NULL,
    spec         TEXT NOT NULL,    -- by what its times are known; '' while the configuration has it not
    done         INTEGER NOT NULL, -- until when its times have been dealt with
    waiting      INTEGER NOT NULL DEFAULT 0, -- time whose call waits for the end of the one before
    paused       INTEGER NOT NULL DEFAULT 0,
    last_due     INTEGER NOT NULL DEFAULT 0,
    last_at      INTEGER NOT NULL DEFAULT 0,
    last_call    TEXT NOT NULL DEFAULT '',
    skipped_due  INTEGER NOT NULL DEFAULT 0,
    skipped_why  TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (function, name)
) STRICT, WITHOUT ROWID;
