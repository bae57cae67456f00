"""Small decisions of the supervisor: when to start again, which ports, which address."""

from pathlib import Path

from dalang_cli.dev.backoff import Backoff
from dalang_cli.dev.kubelet import Addresses
from dalang_cli.dev.ports import choose_ports

HERE, THERE = Path("/tmp/here"), Path("/tmp/there")


def test_backoff_doubles_from_half_a_second_to_thirty() -> None:
    backoff = Backoff()
    assert [backoff.next_delay() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_backoff_begins_anew_after_a_steady_run() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.next_delay()
    backoff.ran_for(59.0)
    assert backoff.next_delay() == 16
    backoff.ran_for(60.0)
    assert backoff.next_delay() == 0.5


def test_ports_of_last_time_are_kept_while_they_are_free() -> None:
    first = choose_ports(["a", "b"], {}, HERE, is_free=lambda port: True)
    assert choose_ports(["a", "b"], first, HERE, is_free=lambda port: True) == first
    moved = choose_ports(["a", "b"], first, HERE, is_free=lambda port: port != first["a"])
    assert moved["b"] == first["b"]
    assert moved["b"] == first["b"]
    assert moved["a"] not in first.values()


def test_ports_are_distinct_and_differ_between_directories() -> None:
    names = [str(number) for number in range(12)]
    here = choose_ports(names, {}, HERE, is_free=lambda port: True)
    there = choose_ports(names, {}, THERE, is_free=lambda port: True)
    assert len(set(here.values()) | set(there.values())) == 24


def test_a_port_is_not_given_twice_when_two_names_had_the_same() -> None:
    chosen = choose_ports(["a", "b"], {"a": 20_000, "b": 20_000}, HERE, is_free=lambda port: True)
    assert chosen["a"] == 20_000 != chosen["b"]


def test_pods_get_addresses_of_their_own() -> None:
    addresses = Addresses(HERE)
    taken = [addresses.take() for _ in range(600)]
    assert len(set(taken)) == 600
    assert {address.split(".")[0] for address in taken} == {"127"}
    assert "127.0.0.1" not in taken
