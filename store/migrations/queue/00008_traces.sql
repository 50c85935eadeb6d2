-- +goose Up
-- The span of the acceptance, as W3C Trace Context has it; NULL where there is none.
ALTER TABLE calls ADD COLUMN trace_id BLOB;
ALTER TABLE calls ADD COLUMN span_id BLOB;
ALTER TABLE calls ADD COLUMN parent_id BLOB;
ALTER TABLE calls ADD COLUMN sampled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE calls ADD COLUMN tracestate TEXT NOT NULL DEFAULT '';

-- Attempts before the call was redriven; attempts counts those since then. It was told by
-- the failures, as long as there were not more than are kept.
ALTER TABLE calls ADD COLUMN redriven INTEGER NOT NULL DEFAULT 0;
UPDATE calls SET redriven = MAX(0, json_array_length(failures) + (state IN (1, 2)) - (state = 4) - attempts) WHERE failures <> '';

CREATE INDEX calls_trace ON calls (trace_id) WHERE trace_id IS NOT NULL;

-- +goose Down
DROP INDEX calls_trace;
ALTER TABLE calls DROP COLUMN redriven;
ALTER TABLE calls DROP COLUMN tracestate;
ALTER TABLE calls DROP COLUMN sampled;
ALTER TABLE calls DROP COLUMN parent_id;
ALTER TABLE calls DROP COLUMN span_id;
ALTER TABLE calls DROP COLUMN trace_id;
