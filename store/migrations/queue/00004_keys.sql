-- +goose Up
-- What tells requests apart that come with the same deduplication key; '' is that
-- of calls that were stored before, and of schedules.
ALTER TABLE calls ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';

-- Of an HTTP request, byte for byte; '' of what was stored before.
ALTER TABLE payloads ADD COLUMN url TEXT NOT NULL DEFAULT '';

-- What is kept of each function for idempotency keys. The totals are kept with each
-- change, so that nobody has to count.
CREATE TABLE kept_totals (
    function TEXT PRIMARY KEY,
    calls    INTEGER NOT NULL,
    bytes    INTEGER NOT NULL -- of headers and bodies
) STRICT, WITHOUT ROWID;

UPDATE kept SET bytes = LENGTH(CAST(header AS BLOB)) + LENGTH(body);

INSERT INTO kept_totals (function, calls, bytes) SELECT function, COUNT(*), SUM(bytes) FROM kept GROUP BY function;

-- +goose StatementBegin
CREATE TRIGGER kept_inserted AFTER INSERT ON kept BEGIN
    INSERT INTO kept_totals (function, calls, bytes) VALUES (NEW.function, 1, NEW.bytes)
        ON CONFLICT (function) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER kept_updated AFTER UPDATE OF function, bytes ON kept BEGIN
    UPDATE kept_totals SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function;
    INSERT INTO kept_totals (function, calls, bytes) VALUES (NEW.function, 1, NEW.bytes)
        ON CONFLICT (function) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER kept_deleted AFTER DELETE ON kept BEGIN
    UPDATE kept_totals SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function;
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER kept_inserted;
DROP TRIGGER kept_updated;
DROP TRIGGER kept_deleted;
DROP TABLE kept_totals;
ALTER TABLE payloads DROP COLUMN url;
ALTER TABLE calls DROP COLUMN fingerprint;
