-- +goose Up
ALTER TABLE versions ADD COLUMN websocket INTEGER NOT NULL DEFAULT 0; -- boolean

-- +goose Down
ALTER TABLE versions DROP COLUMN websocket;
