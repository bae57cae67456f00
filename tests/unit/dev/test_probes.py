"""Probes as the pod's author wrote them."""

from typing import Any

import pytest
from dalang_cli.dev.probes import Probe

CONTAINER = {"ports": [{"name": "http", "containerPort": 8080}]}


def probe(**spec: Any) -> Probe | None:
    return Probe.of(spec, CONTAINER, "127.1.2.3")


def test_defaults_are_those_of_kubernetes() -> None:
    made = probe(httpGet={"port": 80})
    assert made == Probe(
        url="http://127.1.2.3:80/",
        address=None,
        headers={},
        initial_delay=0,
        period=10,
        timeout=1,
        success_threshold=1,
        failure_threshold=3,
    )


@pytest.mark.parametrize(
    ("action", "url"),
    [
        pytest.param({"port": "http", "path": "/ready"}, "http://127.1.2.3:8080/ready", id="a port by name"),
        pytest.param({"port": "81", "path": "x?y=1"}, "http://127.1.2.3:81/x?y=1", id="a number as text"),
        pytest.param({"port": 1, "host": "h", "scheme": "HTTPS"}, "https://h:1/", id="another host, with TLS"),
    ],
)
def test_http(action: dict[str, Any], url: str) -> None:
    made = probe(httpGet=action)
    assert made is not None
    assert made.url == url


def test_tcp() -> None:
    made = probe(tcpSocket={"port": "http"})
    assert made is not None
    assert (made.url, made.address) == (None, ("127.1.2.3", 8080))


def test_other_kinds_count_as_no_probe() -> None:
    assert probe(exec={"command": ["true"]}) is None
    assert Probe.of(None, CONTAINER, "127.1.2.3") is None
