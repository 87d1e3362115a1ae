#!/bin/sh
# SQLite says "wal" when it is asked for write-ahead logging, and from then on nobody can open the database,
# to read it or to go back: SQLITE_IOERR_SHMMAP, for every statement of every connection. So it is on a FUSE
# file system whose files are opened with `direct_io`, where Linux has no shared mappings (unless the server
# allows them, since 6.6, which pyfuse3 3.5.0 does not offer). The mode is promised to be the old one where
# the new one cannot be had; but SQLite looks only whether its VFS has shared memory as such, writes "this is
# WAL" into the file, and maps its index when that is first needed: too late.
#
# Way back: a connection that says `PRAGMA locking_mode=exclusive` before anything else keeps the index in
# its own memory, reads everything, and can leave the mode. A file system that has `direct_io` for some
# files only (whose size is not known, say) should not have it for databases.
#
# Seen with SQLite 3.54.1 (apsw 3.54.1.0) and 3.40.1, Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0:
#                 first: mode=wal   second: select, mode=delete   exclusive: select, mode=delete
#     cached      wal               [(1,)], delete                [(1,)], delete
#     direct_io   wal               SQLITE_IOERR_SHMMAP, twice    [(1,)], delete
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    pyfuse3==3.5.0 trio==0.35.0 apsw==3.54.1.0
cat >"$there/caller.py" <<'PYTHON'
"""Prints what each connection is answered. Argument: the database."""

import sys

import apsw


def connection(name: str, *statements: str) -> None:
    database = apsw.Connection(sys.argv[1])
    for statement in statements:
        try:
            answer = str(database.execute(statement).fetchall())
        except apsw.Error as error:
            code = error.extendedresult
            answer = apsw.mapping_extended_result_codes.get(code, str(error))
        print(name, statement, answer, sep=" | ")
    database.close()


connection("first", "create table t (x)", "insert into t values (1)", "pragma journal_mode=wal")
connection("second", "select x from t", "pragma journal_mode=delete")
connection(
    "alone", "pragma locking_mode=exclusive", "select x from t", "pragma journal_mode=delete"
)
connection("last", "select x from t")
PYTHON
"$there/venv/bin/python" - "$there/mount" "$there/caller.py" <<'PYTHON'
import errno
import os
import platform
import stat
import sys

import apsw
import pyfuse3
import trio

LOST = "SQLITE_IOERR_SHMMAP"


class Folder(pyfuse3.Operations):
    """Files in memory."""

    def __init__(self, *, direct_io: bool) -> None:
        super().__init__()
        self.direct_io = direct_io
        self.names: dict[bytes, int] = {}
        self.bytes: dict[int, bytearray] = {}

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_nlink = inode, 1
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        entry.st_size = len(self.bytes.get(inode, b""))
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def getattr(self, inode, ctx=None):
        return self.attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            content, size = self.bytes[inode], attr.st_size
            content[size:] = bytes(max(0, size - len(content)))
        return self.attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name in self.names:
            return self.attributes(self.names[name])
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def create(self, parent, name, mode, flags, ctx):
        inode = len(self.bytes) + 2
        self.names[name], self.bytes[inode] = inode, bytearray()
        return pyfuse3.FileInfo(fh=inode, direct_io=self.direct_io), self.attributes(inode)

    async def unlink(self, parent, name, ctx):
        del self.names[name]

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, direct_io=self.direct_io)

    async def opendir(self, inode, ctx):
        return inode

    async def read(self, fh, off, size):
        return bytes(self.bytes[fh][off : off + size])

    async def write(self, fh, off, buf):
        content = self.bytes[fh]
        content.extend(bytes(max(0, off - len(content))))
        content[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh, datasync):
        pass

    async def fsyncdir(self, fh, datasync):
        pass


def answers(at: str, caller: str, *, direct_io: bool) -> list[str]:
    """What the connections in the caller are answered, in their order."""

    async def main() -> list[str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            command = [sys.executable, caller, at + "/database"]
            with trio.fail_after(60):
                done = await trio.run_process(command, capture_stdout=True)
            pyfuse3.terminate()
            return done.stdout.decode().splitlines()

    pyfuse3.init(Folder(direct_io=direct_io), at, {"default_permissions"})
    try:
        lines = trio.run(main)
    finally:
        pyfuse3.close(unmount=True)
    print("direct_io:" if direct_io else "cached:", *lines, sep="\n    ")
    return [line.rpartition(" | ")[2] for line in lines]


print(platform.system(), os.uname().release, end=" ")
print("pyfuse3", pyfuse3.__version__, "SQLite", apsw.sqlite_lib_version())
begin, rows, back = ["[]", "[]", "[('wal',)]"], "[(1,)]", "[('delete',)]"
exclusive = "[('exclusive',)]"
cached = answers(*sys.argv[1:], direct_io=False)
if cached != [*begin, rows, back, exclusive, rows, back, rows]:
    raise SystemExit("the file system of this script does not work")
direct = answers(*sys.argv[1:], direct_io=True)
if direct != [*begin, LOST, LOST, exclusive, rows, back, rows]:
    raise SystemExit("the behaviour has changed")
PYTHON
