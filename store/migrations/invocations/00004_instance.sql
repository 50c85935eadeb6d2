-- +goose Up
ALTER TABLE invocations ADD COLUMN instance TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE invocations DROP COLUMN instance;
