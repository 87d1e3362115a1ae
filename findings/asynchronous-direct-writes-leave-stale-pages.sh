#!/bin/sh
# A write through O_DIRECT that succeeds is not seen by buffered readers, and can be taken back by a later
# write to other bytes. Linux forgets cached pages of the range before a direct write, and again after it,
# because somebody can have read them meanwhile. On FUSE it does the latter only for synchronous writes;
# for those of libaio (io_uring likewise), which are asynchronous since FUSE_ASYNC_DIO, which libfuse asks
# for wherever the kernel has it, nothing is forgotten at their end. A page that was read in that moment
# stays old: for every buffered reader, for new opens with `keep_cache`, for ever. One byte that is then
# written buffered, elsewhere in that page, sends the whole old page with it (write-back cache), and what
# was acknowledged is gone from the file system too.
#
# libfuse 3 has no option against it; whoever has the answer to FUSE_INIT in hand can clear the flag. The
# file system cannot tell these writes from write-backs, and cannot invalidate from within them: that waits
# for the pages.
#
# Seen with Linux 6.18.44, libfuse 3.14.0, pyfuse3 3.5.0, each time; "new" was written over "old":
#     pwritev(2)      readers see: new   direct: new   after one byte more, the server has: new
#     io_submit(2)    readers see: old   direct: new   after one byte more, the server has: old
#
# Fails when that is not so any more. Needs /dev/fuse, root, and to build pyfuse3: fuse3 libfuse3-dev
# pkg-config gcc python3-dev. x86-64 and arm64.
set -eu
there=$(mktemp -d)
trap 'umount -l "$there/mount" 2>/dev/null || true; rm -rf --one-file-system "$there"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$there/mount"
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check pyfuse3==3.5.0 trio==0.35.0
cat >"$there/caller.py" <<'PYTHON'
"""Writes a page directly, while another thread reads it buffered. Arguments: file, how to write."""

import ctypes
import mmap
import os
import sys
import threading

PAGE = 4096
SETUP, DESTROY, GETEVENTS, SUBMIT = (
    (206, 207, 208, 209) if os.uname().machine == "x86_64" else (0, 1, 4, 2)
)
libc = ctypes.CDLL(None, use_errno=True)


class Iocb(ctypes.Structure):  # linux/aio_abi.h
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key_and_rw_flags", ctypes.c_uint64),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("rest", ctypes.c_uint64 * 2),
    )


def call(number: int, *arguments: object) -> None:
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def asynchronous(fd: int, page: mmap.mmap) -> None:
    context, done = ctypes.c_ulong(0), (ctypes.c_int64 * 4)()
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    one = Iocb(opcode=1, fd=fd, buffer=address, length=PAGE)
    call(SETUP, 1, ctypes.byref(context))
    call(SUBMIT, context, 1, (ctypes.c_void_p * 1)(ctypes.addressof(one)))
    call(GETEVENTS, context, 1, 1, done, None)
    call(DESTROY, context)
    assert done[2] == PAGE, "the write failed"


def synchronous(fd: int, page: mmap.mmap) -> None:
    assert os.pwritev(fd, [page], 0) == PAGE


path, how = sys.argv[1:]
direct = os.open(path, os.O_RDWR | os.O_DIRECT)
reader = os.open(path, os.O_RDONLY)
page = mmap.mmap(-1, PAGE)
page[:] = b"new." * (PAGE // 4)
write = asynchronous if how == "io_submit(2)" else synchronous
writing = threading.Thread(target=write, args=(direct, page))
writing.start()
os.path.exists(path + ".arrived")  # answered when the write has arrived
os.pread(reader, 3, 0)
os.path.exists(path + ".seen")  # from now on it is answered
writing.join()

seen = os.pread(reader, 3, 0)
anew = os.open(path, os.O_RDWR)
assert os.pread(anew, 3, 0) == seen
os.preadv(direct, [page], 0)
os.pwrite(anew, b"!", 100)
os.fsync(anew)
print(seen.decode(), page[:3].decode())
PYTHON
"$there/venv/bin/python" - "$there/mount" "$there/caller.py" <<'PYTHON'
import errno
import os
import platform
import stat
import sys

import pyfuse3
import trio

ROOT, FILE, PAGE = pyfuse3.ROOT_INODE, 2, 4096


def attributes(inode: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_nlink = inode, 1
    entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
    entry.st_size = PAGE
    entry.attr_timeout = entry.entry_timeout = 60
    return entry


class Folder(pyfuse3.Operations):
    """One file of one page. Its first write is held up until somebody has read it."""

    enable_writeback_cache = True

    def __init__(self) -> None:
        super().__init__()
        self.bytes = bytearray(b"old." * (PAGE // 4))
        self.arrived, self.seen = trio.Event(), trio.Event()

    async def getattr(self, inode, ctx=None):
        return attributes(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return attributes(inode)

    async def lookup(self, parent, name, ctx=None):
        if name == b"file":
            return attributes(FILE)
        if name == b"file.arrived":
            await self.arrived.wait()
        if name == b"file.seen":
            self.seen.set()
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, off, size):
        return bytes(self.bytes[off : off + size])

    async def write(self, fh, off, buf):
        self.arrived.set()
        await self.seen.wait()
        self.bytes[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh, datasync):
        pass


def written(at: str, caller: str, how: str) -> tuple[str, str, str]:
    """What readers see, what is read directly, and what the server has after one byte more."""
    folder = Folder()

    async def main() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            command = [sys.executable, caller, at + "/file", how]
            with trio.fail_after(60):
                done = await trio.run_process(command, capture_stdout=True)
            pyfuse3.terminate()
            return done.stdout.decode()

    pyfuse3.init(folder, at, {"default_permissions"})
    try:
        cached, direct = trio.run(main).split()
    finally:
        pyfuse3.close(unmount=True)
    kept = folder.bytes[:3].decode()
    print(f"{how:15} readers see: {cached}   direct: {direct}", end="   ")
    print("after one byte more, the server has:", kept)
    return cached, direct, kept


print(platform.system(), os.uname().release, "pyfuse3", pyfuse3.__version__)
at, caller = sys.argv[1:]
if written(at, caller, "pwritev(2)") != ("new", "new", "new"):
    raise SystemExit("the file system of this script does not work")
if written(at, caller, "io_submit(2)") != ("old", "new", "old"):
    raise SystemExit("the behaviour has changed")
PYTHON
