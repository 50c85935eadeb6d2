-- +goose Up
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Times are microseconds since 1970 in UTC.
-- States: 0 queued, 1 running, 2 succeeded, 3 failed (dead letter), 4 canceled.
CREATE TABLE calls (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    function    TEXT NOT NULL, -- in whose queue it is; '' once that was deleted
    lane        TEXT NOT NULL, -- what takes turns with other lanes: a function, or its webhooks
    target      TEXT NOT NULL,
    kind        TEXT NOT NULL,
    state       INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    due_at      INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    finished_at INTEGER,
    purge_at    INTEGER, -- when it is deleted; NULL until it has ended
    attempts    INTEGER NOT NULL DEFAULT 0,
    failures    TEXT NOT NULL DEFAULT '', -- JSON
    dedup       TEXT,
    source      TEXT NOT NULL DEFAULT '',
    depth       INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL, -- of payload and result
    status      INTEGER NOT NULL DEFAULT 0,
    cut         INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX calls_due ON calls (lane, due_at, seq) WHERE state < 2;
CREATE INDEX calls_list ON calls (function, state, seq);
CREATE INDEX calls_purge ON calls (purge_at) WHERE purge_at IS NOT NULL;
CREATE UNIQUE INDEX calls_dedup ON calls (function, dedup) WHERE dedup IS NOT NULL;

-- What is large is apart, so that lists and turns do not read it.
CREATE TABLE payloads (
    seq  INTEGER PRIMARY KEY,
    head BLOB,
    body BLOB
) STRICT;

CREATE TABLE results (
    seq     INTEGER PRIMARY KEY,
    headers TEXT NOT NULL, -- JSON
    body    BLOB
) STRICT;

-- The totals are kept with each change, so that nobody has to count.
CREATE TABLE totals (
    function TEXT NOT NULL,
    state    INTEGER NOT NULL,
    calls    INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (function, state)
) STRICT, WITHOUT ROWID;

-- +goose StatementBegin
CREATE TRIGGER calls_inserted AFTER INSERT ON calls BEGIN
    INSERT INTO totals (function, state, calls, bytes) VALUES (NEW.function, NEW.state, 1, NEW.bytes)
        ON CONFLICT (function, state) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER calls_updated AFTER UPDATE OF function, state, bytes ON calls BEGIN
    UPDATE totals SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function AND state = OLD.state;
    INSERT INTO totals (function, state, calls, bytes) VALUES (NEW.function, NEW.state, 1, NEW.bytes)
        ON CONFLICT (function, state) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER calls_deleted AFTER DELETE ON calls BEGIN
    UPDATE totals SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function AND state = OLD.state;
    DELETE FROM payloads WHERE seq = OLD.seq;
    DELETE FROM results WHERE seq = OLD.seq;
END;
-- +goose StatementEnd
