-- +goose Up
-- Every function has an alias "live", whose main version is functions.live.
CREATE TABLE aliases (
    function   TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    name       TEXT NOT NULL,
    versions   TEXT NOT NULL, -- JSON: shares in percent by number
    sticky     TEXT NOT NULL,
    env        TEXT NOT NULL, -- JSON
    routes     TEXT NOT NULL, -- JSON; those of "live" are in its version's config
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (function, name)
) STRICT, WITHOUT ROWID;

INSERT INTO aliases (function, name, versions, sticky, env, routes, updated_at)
SELECT name, 'live', json_object(CAST(live AS TEXT), 100), '', 'null', 'null', updated_at FROM functions;

ALTER TABLE routes ADD COLUMN alias TEXT NOT NULL DEFAULT 'live';

-- How functions came from one live version to another.
CREATE TABLE releases (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    function   TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    "from"     INTEGER NOT NULL,
    "to"       INTEGER NOT NULL,
    canary     TEXT NOT NULL, -- JSON
    step       INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    step_at    INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL -- 0 while it runs
) STRICT;

CREATE INDEX releases_function ON releases (function, id);
CREATE UNIQUE INDEX releases_running ON releases (function) WHERE state = 'running';

-- +goose Down
DROP TABLE releases;
DELETE FROM routes WHERE alias <> 'live';
ALTER TABLE routes DROP COLUMN alias;
DROP TABLE aliases;
