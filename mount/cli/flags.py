"""The flags that several commands share, each with its one description, and those of a mount."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, get_origin

from cyclopts import Parameter

from mount.options import OPTIONS, TYPES

F = TypeVar("F", bound=Callable[..., object])

Account = Annotated[str | None, Parameter(help=OPTIONS["account"].help)]
PasswordFile = Annotated[
    str | None,
    Parameter(
        help="Read the password from this file; - is standard input.", allow_leading_hyphen=True
    ),
]
TokenFile = Annotated[
    str | None,
    Parameter(
        help="Keep the token in this file instead; - is standard input.", allow_leading_hyphen=True
    ),
]
Data = Annotated[str, Parameter(help="The server's data directory.")]
MountOptions = Annotated[
    list[str] | None,
    Parameter(
        name=["-o", "--options"],
        negative="",
        help="Options as for mount(8), separated by commas: ro, allow_other, uid=, umask=...",
    ),
]
Insecure = Annotated[bool, Parameter(negative="", help=OPTIONS["insecure"].help)]
RevokeDevices = Annotated[
    bool, Parameter(negative="", help="Also refuse every other device of the account.")
]
Timeout = Annotated[float | None, Parameter(help="Give up after this many seconds.")]
UnlessOffline = Annotated[
    bool, Parameter(negative="", help="Give up when the server cannot be reached.")
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the stable JSON schema.")]
Path = Annotated[str, Parameter(name="PATH")]
Mount = Annotated[
    str | None, Parameter(name="DIR", help="The mount; needed when there are several.")
]
Expires = Annotated[
    str | None, Parameter(help="It ends after this long, such as 7d or 12h 30m; never without.")
]


def of_options(command: F) -> F:
    """Let `command` take the options of a mount that have a help as flags: they come, named by
    their fields, where it says `**`."""
    *own, _rest = inspect.signature(command).parameters.values()
    signature = inspect.Signature([*own, *_option_flags()])
    command.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect` looks for
    return command


def _option_flags() -> Iterator[inspect.Parameter]:
    for field, option in OPTIONS.items():
        if not option.help:
            continue
        default: bool | None = None
        kind: Any = str | None
        if option.read is None:
            kind, default = bool, False
        elif get_origin(TYPES[field]) is Literal:
            kind = TYPES[field] | None
        flag = Parameter(name=option.flag, negative="", help=option.help)
        yield inspect.Parameter(
            field,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, flag],
        )
