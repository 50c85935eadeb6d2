-- +goose Up
CREATE TABLE secrets (
    name   TEXT PRIMARY KEY,
    number INTEGER NOT NULL -- the version that counts
) STRICT, WITHOUT ROWID;

CREATE TABLE secret_versions (
    name       TEXT NOT NULL REFERENCES secrets (name) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    key        TEXT NOT NULL,    -- which key encrypted it
    sealed     BLOB NOT NULL,    -- nonce and AES-256-GCM of the value
    size       INTEGER NOT NULL, -- of the value, in bytes
    text       INTEGER NOT NULL, -- 1 if an environment variable can have the value
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, number)
) STRICT;

-- The last number of each name, also of those that were deleted: a number never
-- stands for two values.
CREATE TABLE secret_counters (
    name TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE secret_counters;
DROP TABLE secret_versions;
DROP TABLE secrets;
