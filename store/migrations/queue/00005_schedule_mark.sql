-- +goose Up
-- Until when times had been dealt with before the clock was set back.
ALTER TABLE schedules ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
