"""Signals while a call waits for a network that stands still; and who else goes on meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mount.session.interrupts import is_told_to_end, maps, was_killed
from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault
from tests.system.harness import COMMAND_SECONDS, noise, wait_until

CALLS = {
    "read": "open(path, 'rb').read()",
    "direct": "os.readv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)])",
    "partial": "os.pwrite(os.open(path, os.O_WRONLY), b'x', 5)",
    "stat": "os.stat(path + '/name')",
    "listdir": "os.listdir(path)",
    "create": "open(path + '/new', 'w')",
    "mkdir": "os.mkdir(path + '/new')",
    "unlink": "os.unlink(path + '/inside')",
    "rename": "os.rename(path + '/inside', path + '/other')",
    "link": "os.link(path + '/inside', path + '/other')",
}
OF_FILES = ("read", "direct", "partial")
PREAMBLE = """
import mmap, os, signal, sys
path = sys.argv[1]
class Told(Exception): pass
def handler(number, frame): raise Told
signal.signal(signal.SIGINT, {sigint})
signal.signal(signal.SIGALRM, lambda number, frame: None)
"""


class Caller:
    """A program that makes one call; the call has begun when this is made."""

    def __init__(self, fault: Fault, call: str, path: Path, sigint: str = "handler") -> None:
        before = fault.befell
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", PREAMBLE.format(sigint=sigint) + call, path],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: fault.befell > before, f"{call} waits for the network")

    def told(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and last words."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=COMMAND_SECONDS)[1]
        return self.process.returncode, said.strip().rpartition("\n")[2]


@pytest.fixture
def still(proxied: Proxied) -> Iterator[Fault]:
    """From the first use of the network on it stands still."""
    proxied.a.flush()
    yield Fault(".", stall=True)
    proxied.proxy.forget()
    proxied.b.comes_online()


def prepare(proxied: Proxied, name: str, *, is_file: bool) -> Path:
    """Something that `b` knows of, and has nothing of."""
    at = proxied.a.at / name
    if is_file:
        at.write_bytes(noise(600_000, len(name)))  # too large to be fetched ahead of anybody
    else:
        at.mkdir()
        (at / "inside").touch()
    return proxied.b.at / name


@pytest.mark.parametrize("how", ["killed", "fatal", "handled"])
def test_a_call_that_waits_for_the_network_ends_at_a_signal(
    proxied: Proxied, still: Fault, how: str
) -> None:
    paths = {call: prepare(proxied, f"{how}-{call}", is_file=call in OF_FILES) for call in CALLS}
    proxied.a.flush()
    for path in paths.values():
        proxied.b.sees(path.name)
    proxied.proxy.add(still)
    number = signal.SIGKILL if how == "killed" else signal.SIGINT
    sigint = "handler" if how == "handled" else "signal.SIG_DFL"
    callers = {call: Caller(still, CALLS[call], path, sigint) for call, path in paths.items()}
    expected = (1, "Told") if how == "handled" else (-number, "")
    endings = {call: one.told(number) for call, one in callers.items()}
    assert endings == dict.fromkeys(CALLS, expected)
    assert not still.is_over


def test_a_timer_ends_no_call_and_a_signal_only_its_own(proxied: Proxied, still: Fault) -> None:
    """Programs rely on SA_RESTART; two who wait for one answer do not give up together."""
    at = prepare(proxied, "timed", is_file=False)
    proxied.a.flush()
    proxied.b.sees("timed")
    proxied.proxy.add(still)
    begin, end = "signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)", "signal.alarm(0)"
    timed = f"{begin}\n{CALLS['listdir']}\n{end}"
    first = Caller(still, CALLS["listdir"], at)
    ticking = subprocess.Popen(
        [sys.executable, "-S", "-c", PREAMBLE.format(sigint="handler") + timed, at]
    )
    wait_until(lambda: pending(ticking.pid, "SigPnd", "ShdPnd"), "its timer is over")
    assert first.told(signal.SIGINT) == (1, "Told")
    assert ticking.poll() is None
    still.lift()
    assert ticking.wait(COMMAND_SECONDS) == 0


def pending(pid: int, *fields: str) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(fields))


def test_a_mapped_page_that_waits_is_no_bus_error(proxied: Proxied, still: Fault) -> None:
    at = prepare(proxied, "mapped", is_file=True)
    proxied.a.flush()
    proxied.b.sees("mapped")
    proxied.proxy.add(still)
    touch = "mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[5]\nos.getpid()\n"
    caller = Caller(still, touch, at)
    caller.process.send_signal(signal.SIGINT)
    wait_until(lambda: pending(caller.process.pid, "ShdPnd"), "the signal waits")
    still.lift()
    assert caller.ended() == (1, "Told")


def test_what_waits_for_the_server_at_fsync_ends_at_a_signal(
    proxied: Proxied, still: Fault
) -> None:
    device = proxied.site.device("c", "--sync", "remote")
    device.mount()
    (device.at / "first").write_bytes(b"the network is known to work")
    proxied.proxy.add(still)
    opened = "file = os.open(path, os.O_WRONLY | os.O_CREAT); os.write(file, b'text')\n"
    opened += "os.write(2, b'now\\n')\n"
    for how, call in (("fsync", opened + "os.fsync(file)"), ("close", opened + "os.close(file)")):
        for sigint, expected in (("handler", (1, "Told")), ("signal.SIG_DFL", (-2, ""))):
            name = f"{how}-{-expected[0]}"
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", PREAMBLE.format(sigint=sigint) + call]
                + [device.at / name],
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            assert process.stderr.readline() == "now\n"
            wait_until(partial(rests, process.pid), "it waits")
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=COMMAND_SECONDS)[1].strip().rpartition("\n")[2]
            assert (process.returncode, said) == expected, how
    still.lift()
    device.flush()
    proxied.b.sees("fsync-2", b"text")
    device.umount()


MANY = """
import os, sys
at, files, directories = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(files + directories):
    if not os.fork():
        if number < files:
            file = os.open(f"{at}/large", os.O_RDONLY)
            os.pread(file, 1, number << 20)
        else:
            os.listdir(f"{at}/many/{number - files}")
        os._exit(0)
while True:
    try:
        status = os.wait()[1]
    except ChildProcessError:
        break
    assert status == 0
"""


def test_hundreds_who_wait_for_the_network_keep_nobody_waiting(
    proxied: Proxied, still: Fault
) -> None:
    """Cold reads, of which the kernel would send 12 at once and no written page behind them; and
    directories that are looked into for the first time, more than once were handled at once."""
    files, directories = 60, 300
    a, b = proxied.a.at, proxied.b.at
    with (a / "large").open("wb") as file:
        file.write(noise(1 << 20))
        file.truncate(files << 20)
        for number in range(files):
            file.seek(number << 20)
            file.write(number.to_bytes(4096, "big"))
    (a / "many").mkdir()
    proxied.a.flush()
    proxied.b.sees("many")
    os.listdir(b / "many")  # what comes into it later is not listed ahead of who looks
    for number in range(directories):
        (a / "many" / str(number)).mkdir()
    proxied.a.flush()
    proxied.b.sees(f"many/{directories - 1}")
    proxied.proxy.add(still)
    waiting = subprocess.Popen([sys.executable, "-S", "-c", MANY, b, str(files), str(directories)])
    wait_until(lambda: len(children(waiting.pid)) == files + directories, "all were started")
    wait_until(lambda: all(map(rests, children(waiting.pid))), "all of them wait")
    busy = "os.mkdir(path); open(path + '/new', 'w').write('text'); os.rename(path, path + '2')"
    subprocess.run(
        [sys.executable, "-S", "-c", PREAMBLE.format(sigint="handler") + busy, b / "goes-on"],
        check=True,
        timeout=COMMAND_SECONDS,
    )
    assert len(children(waiting.pid)) == files + directories
    still.lift()
    assert waiting.wait(COMMAND_SECONDS) == 0
    assert (b / "goes-on2" / "new").read_text() == "text"


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(item) for item in found]


def rests(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SD"


# What /proc says.


def status(pending: int = 0, shared: int = 0, blocked: int = 0) -> str:
    fields = {"SigPnd": pending, "ShdPnd": shared, "SigBlk": blocked}
    return "".join(f"{name}:\t{value:016x}\n" for name, value in fields.items())


def bit(number: signal.Signals) -> int:
    return 1 << number - 1


def test_which_signals_tell_a_caller_to_end() -> None:
    assert is_told_to_end(status(pending=bit(signal.SIGKILL)))
    assert is_told_to_end(status(shared=bit(signal.SIGTERM) | bit(signal.SIGALRM)))
    assert not is_told_to_end(status(shared=bit(signal.SIGINT), blocked=bit(signal.SIGINT)))
    for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGWINCH, signal.SIGTSTP, signal.SIGURG):
        assert not is_told_to_end(status(pending=bit(number), shared=bit(number)))
    assert not is_told_to_end("")


def test_who_ends_by_a_signal_was_killed_and_who_exits_was_not() -> None:
    assert was_killed("7 (a b) Z 1 9")
    assert not was_killed("7 (a b) Z 1 256")
    assert not was_killed("")


def test_a_file_is_mapped_when_its_inode_is_named_or_nothing_may_be_seen() -> None:
    mapping = "7f00-7f01 r--p 00000000 00:2a 17 /mnt/with a name\n7f02-7f03 rw-p 0 00:00 0 \n"
    assert maps(mapping, 17)
    assert not maps(mapping, 1)
    assert maps("", 1)
