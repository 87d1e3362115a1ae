"""server/http/certificate.py: the certificate of a server that was given none."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from remote.protocol.certificates import fingerprint, trusting
from server.http.certificate import Identity, tell_nothing
from server.storage.keys import BadKey
from tests.server.http.test_tls import shake_hands


def test_it_is_made_once_and_stays(tmp_path: Path) -> None:
    first, again = Identity(tmp_path), Identity(tmp_path)
    assert first.certificate == again.certificate
    assert first.fingerprint == fingerprint(first.certificate)
    assert stat.S_IMODE((tmp_path / "keys" / "server.pem").stat().st_mode) == 0o600
    assert "PRIVATE" not in first.certificate


def test_clients_that_pinned_it_shake_hands_with_nobody_else(tmp_path: Path) -> None:
    one, other = Identity(tmp_path / "one"), Identity(tmp_path / "other")
    shake_hands(trusting(one.certificate), one.context)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(trusting(one.certificate), other.context)


def test_no_clock_is_too_wrong_for_it(tmp_path: Path) -> None:
    made = x509.load_pem_x509_certificate(Identity(tmp_path).certificate.encode())
    assert made.not_valid_before_utc <= datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert made.not_valid_after_utc.year == 9999


def test_what_is_public_is_written_down(tmp_path: Path) -> None:
    made = Identity(tmp_path)
    made.tell(tmp_path)
    assert (tmp_path / "server.certificate").read_text() == made.certificate
    assert (tmp_path / "server.fingerprint").read_text() == made.fingerprint + "\n"
    tell_nothing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize("damage", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_key_is_said_so(tmp_path: Path, damage: str) -> None:
    Identity(tmp_path)
    (tmp_path / "keys" / "server.pem").write_text(damage)
    with pytest.raises(BadKey, match="restore it from a backup"):
        Identity(tmp_path)
