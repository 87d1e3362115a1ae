"""What the command line asks of a mount, asked at its socket: no process of Python for each."""

from __future__ import annotations

from mount.asked import control_client
from mount.asked.control_messages import CacheClearRequest, FlushRequest, socket_path
from tests.system.harness import COMMAND_SECONDS, Device, drop_page_cache


def flush(device: Device) -> None:
    """`Device.flush`."""
    request = FlushRequest(timeout=COMMAND_SECONDS)
    control_client.ask(socket_path(device.state), request, patience=None)


def clear_blocks(device: Device) -> None:
    """Forget every clean block, though not the kernel's pages."""
    control_client.ask(socket_path(device.state), CacheClearRequest(), patience=COMMAND_SECONDS)


def clear_cache(device: Device) -> None:
    """`Device.clear_cache`."""
    clear_blocks(device)
    drop_page_cache(device.at)
