-- +goose Up
ALTER TABLE invocations ADD COLUMN cold_reason TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE invocations DROP COLUMN cold_reason;
