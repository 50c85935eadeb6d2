-- +goose Up
ALTER TABLE versions ADD COLUMN request_stream INTEGER NOT NULL DEFAULT 0; -- boolean

-- +goose Down
ALTER TABLE versions DROP COLUMN request_stream;
