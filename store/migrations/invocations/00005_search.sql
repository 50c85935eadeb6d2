-- +goose Up
-- Records are listed by when their calls started. Ids do not say that of asynchronous
-- calls: those are as old as the acceptance.
ALTER TABLE invocations ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
-- Of older records only some say that they were attempts.
UPDATE invocations SET attempt = CAST(substr(id, instr(id, '.') + 1) AS INTEGER) WHERE id LIKE '%.%';
UPDATE invocations SET attempt = 1 WHERE attempt = 0 AND kind = 'queue';
DROP INDEX invocations_function;
CREATE INDEX invocations_function ON invocations (function, started_at);
-- What failed is looked for most, and is little among much.
CREATE INDEX invocations_failed ON invocations (started_at) WHERE error_code <> '' OR status >= 500;
CREATE INDEX invocations_function_failed ON invocations (function, started_at) WHERE error_code <> '' OR status >= 500;

-- +goose Down
DROP INDEX invocations_function_failed;
DROP INDEX invocations_failed;
DROP INDEX invocations_function;
CREATE INDEX invocations_function ON invocations (function, id);
ALTER TABLE invocations DROP COLUMN attempt;
