"""server/http/slots.py: whose places are whose, and who makes room."""

from __future__ import annotations

from server.http.slots import Slots


def seats(total: int = 100, per_address: int = 100, per_account: int = 100) -> Slots[str]:
    return Slots(total, per_address, per_account)


def enter(places: Slots[str], *guests: str, address: str | None = "here") -> None:
    for guest in guests:
        assert places.in_the_way(address) is None
        places.take(guest, address)


def crowd(places: Slots[str], address: str | None = "here") -> list[str] | None:
    found = places.in_the_way(address)
    return None if found is None else list(found)


def test_strangers_of_one_address_make_room_for_each_other() -> None:
    places = seats(per_address=2)
    enter(places, "a", "b")
    enter(places, "elsewhere", address="there")
    assert crowd(places) == ["a", "b"]
    places.served("a")
    assert crowd(places) == ["b", "a"]
    places.leave("b")
    assert crowd(places) is None
    assert places.taken == 2


def test_strangers_never_have_all_places() -> None:
    places = seats(total=8)
    for n in range(6):
        enter(places, f"s{n}", address=f"address {n}")
    assert crowd(places, "one more") == [f"s{n}" for n in range(6)]
    places.recognise("s0", "anna")  # whoever is known leaves a stranger's place to the next
    enter(places, "s6", address="one more")
    assert crowd(places, "one more") == [f"s{n}" for n in range(1, 7)]


def test_who_is_known_is_in_nobodys_way() -> None:
    places = seats(per_address=2)
    enter(places, "a", "b")
    places.recognise("a", "anna")
    places.recognise("b", "anna")
    assert not places.is_stranger("a")
    enter(places, "c", "d")
    assert crowd(places) == ["c", "d"]


def test_an_account_has_its_share_and_beyond_it_is_a_stranger() -> None:
    places = seats(per_account=1)
    enter(places, "a", "b")
    places.recognise("a", "anna")
    places.recognise("b", "anna")
    assert places.is_stranger("b")
    places.leave("a")
    places.recognise("b", "anna")
    assert not places.is_stranger("b")


def test_a_proxys_places_are_nobodys_share() -> None:
    places = seats(total=4, per_address=1)
    enter(places, "p", "q", "r", address=None)
    enter(places, "s")
    assert crowd(places, None) == ["s"]
    places.leave("s")
    enter(places, "t", address=None)
    assert crowd(places, None) == []
    assert crowd(places) == []


def test_whoever_succeeds_has_the_place() -> None:
    places = seats(per_address=1)
    enter(places, "a")
    places.succeed("a", "b")
    assert crowd(places) == ["b"]
    places.recognise("b", "anna")
    places.succeed("b", "c")
    assert places.taken == 1
    places.leave("c")
    places.leave("c")
    places.leave("never there")
    assert places.taken == 0
    assert (places._from, places._of_account) == ({}, {})


def test_the_smallest_server_serves_somebody() -> None:
    places = seats(total=1)
    enter(places, "a")
    assert crowd(places) == ["a"]
