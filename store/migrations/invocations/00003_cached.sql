-- +goose Up
ALTER TABLE invocations ADD COLUMN cached INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE invocations DROP COLUMN cached;
