"""An upload that was cut off goes on from the chunks that are there."""

from __future__ import annotations

from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault
from tests.system.harness import noise, wait_until
from tests.system.kill_sent import Store

SIZE = 64 << 20
STORE = "^PUT /blobs/"
HALF = 27  # chunks are 1.2 MiB long on average
GOAL = 1.02  # the same as of `bench`


def test_after_a_kill_at_half_of_an_upload_only_the_rest_is_sent(proxied: Proxied) -> None:
    """The store takes half of the chunks, the others are held up under way; then the mount dies."""
    device, server, content = proxied.a, proxied.site.server, noise(SIZE, 31)

    def stored() -> Store:
        return Store.read(server.data / "blobs", server.log)

    proxied.proxy.add(Fault(STORE, times=HALF))
    held = proxied.proxy.add(Fault(STORE, stall=True))
    (device.at / "large").write_bytes(content)
    wait_until(lambda: held.befell and stored().chunks == HALF, "half of it is stored")
    device.kill()
    proxied.proxy.cut()  # what was under way is lost with it
    proxied.proxy.forget()
    proxied.proxy.mend()
    left = SIZE - stored().stored
    device.umount()
    device.mount()
    device.flush()
    assert SIZE // 4 < left < SIZE * 3 // 4
    assert left <= device.uploaded <= GOAL * left
    assert stored().again == []
    assert proxied.b.sees("large", content)
