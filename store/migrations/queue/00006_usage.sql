-- +goose Up
-- Whose room a call takes: the function that the first call of its chain was for, '' once
-- that was deleted. And how many calls can still come of it.
ALTER TABLE calls ADD COLUMN payer TEXT NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN budget INTEGER NOT NULL DEFAULT 16;

UPDATE calls SET payer = function;

-- What takes room, by payer, and '' for all: calls that have not ended and dead letters,
-- and apart from them those that are kept as long as there is room. The sums are kept
-- with each change, so that nobody has to count.
CREATE TABLE usage (
    payer      TEXT PRIMARY KEY,
    calls      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    kept       INTEGER NOT NULL,
    kept_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO usage (payer, calls, bytes, kept, kept_bytes)
    SELECT payer, SUM(state IN (0, 1, 3)), SUM(IIF(state IN (0, 1, 3), bytes, 0)), SUM(state IN (2, 4)), SUM(IIF(state IN (2, 4), bytes, 0))
    FROM calls WHERE payer <> '' GROUP BY payer;

INSERT INTO usage (payer, calls, bytes, kept, kept_bytes)
    SELECT '', COALESCE(SUM(state IN (0, 1, 3)), 0), COALESCE(SUM(IIF(state IN (0, 1, 3), bytes, 0)), 0),
        COALESCE(SUM(state IN (2, 4)), 0), COALESCE(SUM(IIF(state IN (2, 4), bytes, 0)), 0)
    FROM calls;

-- +goose StatementBegin
CREATE TRIGGER calls_used AFTER INSERT ON calls BEGIN
    INSERT INTO usage (payer, calls, bytes, kept, kept_bytes) VALUES (NEW.payer, 1, NEW.bytes, 0, 0), ('', 1, NEW.bytes, 0, 0)
        ON CONFLICT (payer) DO UPDATE SET calls = calls + 1, bytes = bytes + excluded.bytes;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER calls_changed AFTER UPDATE OF state, bytes, payer ON calls
    WHEN OLD.bytes <> NEW.bytes OR (OLD.state IN (2, 4)) <> (NEW.state IN (2, 4)) OR OLD.payer <> NEW.payer BEGIN
    UPDATE usage SET calls = calls - (OLD.state NOT IN (2, 4)), bytes = bytes - IIF(OLD.state IN (2, 4), 0, OLD.bytes),
        kept = kept - (OLD.state IN (2, 4)), kept_bytes = kept_bytes - IIF(OLD.state IN (2, 4), OLD.bytes, 0)
        WHERE payer IN (OLD.payer, '');
    UPDATE usage SET calls = calls + (NEW.state NOT IN (2, 4)), bytes = bytes + IIF(NEW.state IN (2, 4), 0, NEW.bytes),
        kept = kept + (NEW.state IN (2, 4)), kept_bytes = kept_bytes + IIF(NEW.state IN (2, 4), NEW.bytes, 0)
        WHERE payer IN (NEW.payer, '');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER calls_freed AFTER DELETE ON calls BEGIN
    UPDATE usage SET calls = calls - (OLD.state NOT IN (2, 4)), bytes = bytes - IIF(OLD.state IN (2, 4), 0, OLD.bytes),
        kept = kept - (OLD.state IN (2, 4)), kept_bytes = kept_bytes - IIF(OLD.state IN (2, 4), OLD.bytes, 0)
        WHERE payer IN (OLD.payer, '');
END;
-- +goose StatementEnd
