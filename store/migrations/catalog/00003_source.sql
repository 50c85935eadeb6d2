-- +goose Up
-- The digest of the code before dependencies were installed; empty if there
-- were none to install.
ALTER TABLE versions ADD COLUMN source TEXT NOT NULL DEFAULT '';

CREATE INDEX versions_source ON versions (source) WHERE source <> '';

-- +goose Down
DROP INDEX versions_source;
ALTER TABLE versions DROP COLUMN source;
