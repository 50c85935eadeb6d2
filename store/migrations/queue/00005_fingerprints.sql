-- +goose Up
-- What tells requests apart that come with the same deduplication key; '' is that
-- of calls that were stored before, and of schedules.
ALTER TABLE calls ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE calls DROP COLUMN fingerprint;
