"""The bytes that are written and read: pseudo-random from a seed, the same on every machine.

Two kinds. `random` does not compress. `half` compresses to half: the second half of each 4 KiB page
is zeros. Every file and run has its own seed, because equal content would be sent only once.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

Kind = Literal["random", "half"]

MIB = 1 << 20
PAGE = 4096


def content(kind: Kind, rng: random.Random, size: int) -> bytes:
    """`size` bytes of `kind`."""
    if kind == "random":
        return rng.randbytes(size)
    pages = -(-size // PAGE)
    noise, zeros = rng.randbytes(pages * PAGE // 2), bytes(PAGE // 2)
    halves = (noise[at : at + PAGE // 2] for at in range(0, len(noise), PAGE // 2))
    return b"".join(half + zeros for half in halves)[:size]


def write_source(file: Path, kind: Kind, seed: str, size: int) -> None:
    """Make `file` hold `size` bytes of `kind`; peers are given a copy of it."""
    rng = random.Random(seed)
    with file.open("wb") as stream:
        for start in range(0, size, MIB):
            stream.write(content(kind, rng, min(MIB, size - start)))
