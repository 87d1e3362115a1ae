"""The session that docs/protocol.md shows works as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.accounts.accounts import add_account
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def test_the_curl_session(start: Start, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    found = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    add_account(tmp_path / "data", "anna", "a secret")
    url = start().url
    python = Path(sys.executable).parent
    env = {"URL": url, "PYTHONPATH": str(ROOT), "PATH": f"{python}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", found[1]],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert ran.stdout.split("\n") == [
        "applied",
        "applied",
        "applied",
        "el",
        "[1,2]",
        "[2,2]",
        "[3,1]",
        "",
    ]
