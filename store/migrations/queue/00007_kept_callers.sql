-- +goose Up
-- Whose responses are kept for idempotency keys: those of who has most go first.
ALTER TABLE kept ADD COLUMN caller TEXT NOT NULL DEFAULT '';

DROP INDEX kept_function;
CREATE INDEX kept_function ON kept (function, caller, created_at);

CREATE TABLE kept_callers (
    function TEXT NOT NULL,
    caller   TEXT NOT NULL,
    calls    INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (function, caller)
) STRICT, WITHOUT ROWID;

INSERT INTO kept_callers (function, caller, calls, bytes) SELECT function, '', COUNT(*), SUM(bytes) FROM kept GROUP BY function;

-- +goose StatementBegin
CREATE TRIGGER kept_callers_inserted AFTER INSERT ON kept BEGIN
    INSERT INTO kept_callers (function, caller, calls, bytes) VALUES (NEW.function, NEW.caller, 1, NEW.bytes)
        ON CONFLICT (function, caller) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER kept_callers_updated AFTER UPDATE OF function, caller, bytes ON kept BEGIN
    UPDATE kept_callers SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function AND caller = OLD.caller;
    INSERT INTO kept_callers (function, caller, calls, bytes) VALUES (NEW.function, NEW.caller, 1, NEW.bytes)
        ON CONFLICT (function, caller) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
    DELETE FROM kept_callers WHERE function = OLD.function AND caller = OLD.caller AND calls = 0;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER kept_callers_deleted AFTER DELETE ON kept BEGIN
    UPDATE kept_callers SET calls = calls - 1, bytes = bytes - OLD.bytes WHERE function = OLD.function AND caller = OLD.caller;
    DELETE FROM kept_callers WHERE function = OLD.function AND caller = OLD.caller AND calls = 0;
END;
-- +goose StatementEnd
