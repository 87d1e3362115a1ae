"""A zip archive as a reader of streams takes it: from its front, without its index.

Does what Java's ZipInputStream does, which is the strictest that we know: content with a data
descriptor must be deflated, and the descriptor has sizes of 8 bytes exactly where one of them does
not fit 4.
"""

from __future__ import annotations

import struct
import zlib

_LOCAL = struct.Struct("<5H3L2H")


def streamed(archive: bytes, limit: int = 0xFFFFFFFF) -> dict[str, bytes]:
    """The contents of an archive, by path. `limit`: the largest size that fits 4 bytes."""
    found, at = dict[str, bytes](), 0
    while archive[at : at + 4] == b"PK\x03\x04":
        said = _LOCAL.unpack_from(archive, at + 4)
        _, flags, method, _, _, crc, packed, size, path_length, extra_length = said
        at += 4 + _LOCAL.size
        path = archive[at : at + path_length].decode()
        at += path_length + extra_length
        if flags & 8:
            assert method == 8, "only deflated content tells where it ends"
            inflate = zlib.decompressobj(-15)
            data = inflate.decompress(archive[at:])
            assert inflate.eof
            packed = len(archive) - at - len(inflate.unused_data)
            at += packed
            sizes = "QQ" if max(packed, len(data)) > limit else "LL"
            descriptor = struct.Struct(f"<4sL{sizes}")
            told = (b"PK\x07\x08", zlib.crc32(data), packed, len(data))
            assert descriptor.unpack_from(archive, at) == told
            at += descriptor.size
        else:
            assert (method, packed, size, crc) == (0, 0, 0, 0), path
            data = b""
        found[path] = data
    assert archive[at : at + 4] in (b"PK\x01\x02", b"PK\x05\x06"), "the index follows"
    return found
