"""The flags that several commands share, each with its one description."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Account = Annotated[str | None, Parameter(help="The account; needed when you have several.")]
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
Insecure = Annotated[
    bool, Parameter(negative="", help="Allow plain HTTP, whoever may be listening or answering.")
]
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
