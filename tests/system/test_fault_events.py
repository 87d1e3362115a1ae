"""Events that come twice, late, out of order or not at all delay a change at most: every device
sees what every other did."""

from __future__ import annotations

import itertools
import os
from typing import get_args

import pytest

from tests.system.conftest import Proxied
from tests.system.faultframes import Frames, Mischief
from tests.system.faultproxy import Fault
from tests.system.harness import Device, wait_until

LIVE = "^GET /v1/changes/live"
PULL = r"^GET /v1/changes(\?|$)"

_numbers = itertools.count(1)


def reconnect(proxied: Proxied, fault: Fault) -> None:
    """Until both devices are pushed to through the fault."""
    proxied.proxy.cut()
    proxied.proxy.mend()
    wait_until(lambda: fault.befell >= 2, "both have a new socket")
    for device in (proxied.a, proxied.b):
        pushed_to(device)


def pushed_to(device: Device) -> None:
    wait_until(lambda: device.status()["feed"]["mode"] == "push", "push")


def busy(device: Device) -> set[str]:
    """Make, rename and remove; what must be there in the end."""
    top = device.at / f"top{next(_numbers)}"
    top.mkdir()
    for number in range(8):
        (top / f"{number}").write_text(f"{number}")
        (top / f"{number}").rename(top / f"renamed {number}")
        device.flush()
    (top / "renamed 0").unlink()
    device.flush()
    return {f"{top.name}/renamed {number}" for number in range(1, 8)}


def agree(device: Device, names: set[str]) -> bool:
    top = device.at / next(iter(names)).split("/")[0]
    return top.is_dir() and {f"{top.name}/{name}" for name in os.listdir(top)} == names


@pytest.mark.parametrize("mischief", get_args(Mischief))
def test_events_that_are_not_as_they_were_sent(proxied: Proxied, mischief: Mischief) -> None:
    fault = proxied.proxy.add(Fault(LIVE, frames=mischief))
    reconnect(proxied, fault)
    names = busy(proxied.a)
    fault.lift()
    (proxied.a.at / "last").write_text(mischief)  # a lost event is made good by the next
    proxied.a.flush()
    proxied.b.shows(lambda: agree(proxied.b, names), "the changes of the other device")
    proxied.b.sees("last", mischief.encode())


def test_an_answer_of_the_feed_that_comes_again(proxied: Proxied) -> None:
    """A page of the past in the place of news: it changes nothing, and no news is lost. The feed
    has broken so often then that it takes its time."""
    names = busy(proxied.a)
    proxied.b.shows(lambda: agree(proxied.b, names), "the changes of the other device")
    again = proxied.proxy.add(Fault(PULL, replay=True, times=4))
    more: set[str] = set()
    while again.befell < 4:
        proxied.proxy.cut()
        proxied.proxy.mend()
        more = busy(proxied.a)
    proxied.b.shows(lambda: agree(proxied.b, more), "the changes of the other device")
    assert agree(proxied.b, names)
    assert agree(proxied.a, names)


def test_frames_are_told_apart_wherever_they_are_cut() -> None:
    sizes = [0, 1, 125, 126, 65535, 65536]
    heads = [
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") for size in sizes[:5]
    ]
    heads.append(b"\x7f" + (65536).to_bytes(8, "big"))
    sent = [b"\x82" + head + bytes(size) for head, size in zip(heads, sizes, strict=True)]
    whole = b"".join(sent)
    for step in (1, 7, 1000, len(whole)):
        frames = Frames()
        got = [
            frame
            for start in range(0, len(whole), step)
            for frame in frames.feed(whole[start : start + step])
        ]
        assert got == sent
