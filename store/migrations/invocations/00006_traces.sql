-- +goose Up
-- Ids of W3C Trace Context; NULL where there is none.
ALTER TABLE invocations ADD COLUMN trace_id BLOB;
ALTER TABLE invocations ADD COLUMN span_id BLOB;
ALTER TABLE invocations ADD COLUMN parent_id BLOB;
ALTER TABLE invocations ADD COLUMN route_ns INTEGER NOT NULL DEFAULT 0;

CREATE INDEX invocations_trace ON invocations (trace_id, id) WHERE trace_id IS NOT NULL;

-- +goose Down
DROP INDEX invocations_trace;
ALTER TABLE invocations DROP COLUMN route_ns;
ALTER TABLE invocations DROP COLUMN parent_id;
ALTER TABLE invocations DROP COLUMN span_id;
ALTER TABLE invocations DROP COLUMN trace_id;
