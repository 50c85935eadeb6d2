-- +goose Up
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The last version number given to a name. Rows outlive their function, so
-- that a number never means two things.
CREATE TABLE counters (
    function TEXT PRIMARY KEY,
    last     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Times are microseconds since 1970 in UTC.
CREATE TABLE functions (
    name       TEXT PRIMARY KEY,
    first      INTEGER NOT NULL, -- number of the first version since it was created
    live       INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    FOREIGN KEY (name, live) REFERENCES versions (function, number) DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    function    TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    number      INTEGER NOT NULL,
    incarnation TEXT NOT NULL UNIQUE,
    config      TEXT NOT NULL, -- JSON
    artifact    TEXT NOT NULL,
    warnings    TEXT NOT NULL, -- JSON
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (function, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX versions_artifact ON versions (artifact);

-- The routes of the live versions.
CREATE TABLE routes (
    route    TEXT PRIMARY KEY,
    function TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;

CREATE INDEX routes_function ON routes (function);

-- +goose Down
DROP TABLE routes;
DROP TABLE versions;
DROP TABLE functions;
DROP TABLE counters;
DROP TABLE settings;
