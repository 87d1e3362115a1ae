"""`limit`: how fast a running mount may move contents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mount.control import client, messages
from mount.options import OPTIONS
from mount.process import registry
from remote.protocol.sizes import rate_text


def limit(
    directory: Annotated[str, Parameter(name="DIR")],
    /,
    *,
    up: Annotated[str | None, Parameter(help=OPTIONS["upload_limit"].help)] = None,
    down: Annotated[str | None, Parameter(help=OPTIONS["download_limit"].help)] = None,
    transfers: Annotated[str | None, Parameter(help=OPTIONS["transfers"].help)] = None,
) -> None:
    """Limit what the mount at DIR uploads and downloads, until it is unmounted; without options,
    show the limits."""
    said = {
        name: _read(field, name, value)
        for name, field, value in (
            ("up", "upload_limit", up),
            ("down", "download_limit", down),
            ("transfers", "transfers", transfers),
        )
        if value is not None
    }
    record, _ = registry.live(Path(directory))
    limits = client.ask(Path(record.control), messages.LimitRequest(**said))
    assert isinstance(limits, messages.TransferLimits)
    print(f"up         {rate_text(limits.up)}")
    print(f"down       {rate_text(limits.down)}")
    print(f"transfers  {limits.transfers}")


def _read(field: str, name: str, value: str) -> Any:
    """As the option of the mount is read. Raises `UsageFailure`."""
    read = OPTIONS[field].read
    assert read is not None
    return read(name, value)
