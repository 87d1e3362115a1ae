"""The tables of the state database and what every column means; how older ones become today's.

Knows: SQL. Must not know: what the rows are for, how a database is opened (`opening`).
"""

from __future__ import annotations

SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,        -- account, drive, root, cursor, seq, device, scope; seq:DRIVE;
                                    -- used_bytes, quota_bytes (NULL: none), as last told;
                                    -- boot, clean: see `Database.lost_power`; gone:ENTRY: see
                                    -- `Merge`
    value
) WITHOUT ROWID;

-- One row per inode number given to the kernel. A file of the drive (`file`) has at most one live
-- node; a new remote version of a regular file gets a new node, and the old one stays, not live,
-- while a handle or the kernel refers to it.
CREATE TABLE node (
    ino       INTEGER PRIMARY KEY AUTOINCREMENT,  -- st_ino; 1 is the root; never reused
    file      TEXT    NOT NULL,     -- the file's id on the wire
    drive     TEXT    NOT NULL,     -- the drive it is in; or tree.LOCAL, HISTORY, REVOKED
    live      INTEGER NOT NULL,     -- 1: what `file` is now; 0: only open handles see it
    kind      TEXT    NOT NULL,     -- wire.Kind
    mode      INTEGER NOT NULL,     -- permission bits, 07777
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    rdev      INTEGER NOT NULL,     -- device number of char and block nodes
    size      INTEGER NOT NULL,     -- bytes, with every local change
    mtime_ns  INTEGER NOT NULL,
    ctime_ns  INTEGER NOT NULL,
    atime_ns  INTEGER NOT NULL,     -- local only, never sent
    links     INTEGER NOT NULL,     -- names of the file in the whole drive, as far as known
    target    TEXT,                 -- of a symlink
    version   TEXT,                 -- regular: the uploaded version under the layers, if any
    base_size INTEGER NOT NULL,     -- regular: size of `version`, 0 without one
    base_file TEXT,                 -- regular: the file that `version` is of
    subdirs   INTEGER NOT NULL DEFAULT 0,  -- directory: entries that are directories
    rev       INTEGER NOT NULL,     -- drive sequence number of the last remote record merged
    listed    INTEGER,              -- directory: seq of its complete listing; NULL: not listed
    made_under BLOB                 -- symlink: wire.FileRecord.made_under; NULL: made here
);
CREATE UNIQUE INDEX node_file ON node (file) WHERE live;
CREATE INDEX node_dead ON node (ino) WHERE NOT live;
CREATE INDEX node_drive ON node (drive);

CREATE TABLE share (                -- what others share with this account: wire.SharedRoot
    file  TEXT PRIMARY KEY,
    drive TEXT NOT NULL,
    owner TEXT NOT NULL,            -- account name
    name  TEXT,                     -- under Shared/OWNER; NULL: it is below another one
    role  TEXT NOT NULL,
    given_ns INTEGER NOT NULL       -- another: given anew, after it had been taken back
) WITHOUT ROWID;

CREATE TABLE entry (
    cookie INTEGER PRIMARY KEY AUTOINCREMENT,  -- readdir position: stable, and never reused
    parent INTEGER NOT NULL REFERENCES node (ino),
    name   TEXT    NOT NULL,
    ino    INTEGER NOT NULL REFERENCES node (ino),
    rev    INTEGER NOT NULL         -- sequence number of the last remote record merged; 0: local
);
CREATE UNIQUE INDEX entry_name ON entry (parent, name);
CREATE INDEX entry_order ON entry (parent, cookie);
CREATE INDEX entry_ino ON entry (ino);

CREATE TABLE xattr (
    ino   INTEGER NOT NULL REFERENCES node (ino) ON DELETE CASCADE,
    name  TEXT    NOT NULL,
    value BLOB    NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- Dirty bytes: a spool file laid over whatever is below it (an older layer, then `node.version`).
CREATE TABLE layer (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- the spool file's name
    ino     INTEGER NOT NULL REFERENCES node (ino),
    below   INTEGER NOT NULL,       -- bytes of what is below that show through; above: zeros
    size    INTEGER NOT NULL,       -- the file's size as this layer says; final once frozen
    version TEXT,                   -- NULL: open for writing; else frozen as that version
    average INTEGER,                -- chunk size it is cut with: a resumed upload cuts alike
    safe    INTEGER NOT NULL,       -- the file's size, if no byte of `unsettled` survived
    instead INTEGER                 -- truncated to nothing: what was there, until this is settled:
                                    -- a layer (its ino is 0 now), or 0: what is below; `unsynced`
);
CREATE INDEX layer_ino ON layer (ino);

CREATE TABLE extent (               -- the byte ranges [start, stop) that a layer's spool file holds
    layer INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    stop  INTEGER NOT NULL,
    PRIMARY KEY (layer, start)
) WITHOUT ROWID;

CREATE TABLE unsettled (            -- parts of extents whose bytes power loss may take: `unsynced`
    layer  INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    start  INTEGER NOT NULL,
    stop   INTEGER NOT NULL,
    digest BLOB    NOT NULL,        -- BLAKE3 of the bytes, 16 bytes: whether they survived
    PRIMARY KEY (layer, start)
) WITHOUT ROWID;

CREATE TABLE manifest (             -- manifests of versions that were read or written here
    version TEXT PRIMARY KEY,
    data    BLOB NOT NULL           -- MessagePack of content.Manifest
) WITHOUT ROWID;

-- The journal: what the server does not have yet, in the order it happened. A directory that must
-- be made before all that (`rebuilding`) has a negative `seq`.
CREATE TABLE op (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    key     TEXT    NOT NULL,       -- idempotency key
    kind    TEXT    NOT NULL,       -- tag of wire.Op
    ino     INTEGER NOT NULL,       -- node the attributes and bytes are taken from when sent
    file    TEXT    NOT NULL,       -- wire.Op.file
    body    BLOB    NOT NULL,       -- MessagePack of journal.Body: names, attribute mask
    version TEXT,                   -- content is frozen under this version id (see layer.version)
    sent    INTEGER NOT NULL DEFAULT 0,  -- 1: may have reached the server: must not be changed now
    refused TEXT,                   -- the server's final refusal, "problem: message"; NULL: none
    made_ns INTEGER NOT NULL        -- when it happened
);
CREATE INDEX op_file ON op (file);

CREATE TABLE pin (                  -- files and directories to keep on this machine
    file TEXT PRIMARY KEY
) WITHOUT ROWID;

-- Remote records that arrived while a local operation on the same thing was not acknowledged yet.
CREATE TABLE shadow (
    key    TEXT PRIMARY KEY,        -- journal.file_key or journal.entry_key
    record BLOB NOT NULL            -- MessagePack of FileRecord or EntryRecord
) WITHOUT ROWID;
"""


# What brings a database of an older schema to the next one.
UPGRADES = {
    1: """
ALTER TABLE node ADD COLUMN drive TEXT NOT NULL DEFAULT '';
UPDATE node SET drive = (SELECT value FROM meta WHERE key = 'drive');
CREATE INDEX node_drive ON node (drive);
CREATE TABLE share (file TEXT PRIMARY KEY, drive TEXT NOT NULL, owner TEXT NOT NULL, name TEXT,
    role TEXT NOT NULL, given_ns INTEGER NOT NULL) WITHOUT ROWID;
""",
    2: """
ALTER TABLE layer ADD COLUMN safe INTEGER NOT NULL DEFAULT 0;
ALTER TABLE layer ADD COLUMN instead INTEGER;
UPDATE layer SET safe = size;
CREATE TABLE unsettled (layer INTEGER NOT NULL REFERENCES layer (id) ON DELETE CASCADE,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (layer, start)) WITHOUT ROWID;
""",
    3: """
ALTER TABLE node ADD COLUMN made_under BLOB;
UPDATE node SET made_under = x'' WHERE kind = 'symlink';
""",
}
