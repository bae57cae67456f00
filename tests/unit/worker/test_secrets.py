"""Keys out of mounted Secrets, and what is said where there is none."""

import base64
import json
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from dalang_api.contract import SecretKey
from dalang_worker.secrets import SecretNotFoundError, read_key, redact, visible_keys

KEY = SecretKey(name="openai", key="api-key")


def mount(root: Path, **keys: bytes) -> None:
    """Lay a Secret out as the kubelet does: its keys are links into a folder that is swapped as a whole."""
    data = root / "openai" / "..2026_03_01"
    data.mkdir(parents=True)
    (root / "openai" / "..data").symlink_to(data.name)
    for name, value in keys.items():
        (data / name.replace("_", "-")).write_bytes(value)
        (root / "openai" / name.replace("_", "-")).symlink_to(f"..data/{name.replace('_', '-')}")


@pytest.mark.parametrize(
    "content", [pytest.param(b"sk-1", id="as it is"), pytest.param(b" sk-1\r\n", id="without white space around it")]
)
def test_a_key_is_read(tmp_path: Path, content: bytes) -> None:
    mount(tmp_path, api_key=content)
    assert read_key(tmp_path, KEY) == "sk-1"


def test_a_rotated_key_counts_at_once(tmp_path: Path) -> None:
    mount(tmp_path, api_key=b"sk-1")
    read_key(tmp_path, KEY)
    (tmp_path / "openai" / "..data" / "api-key").write_text("sk-2")
    assert read_key(tmp_path, KEY) == "sk-2"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param(None, "Secret 'openai' is not there; create it with key 'api-key'", id="no Secret"),
        pytest.param({}, "Secret 'openai' is not there; create it with key 'api-key'", id="an empty Secret"),
        pytest.param(
            {"token": b"s1", "apikey": b"s2"},
            "Secret 'openai' has no key 'api-key' (it has: apikey, token)",
            id="no such key",
        ),
        pytest.param({"api_key": b"\n"}, "Key 'api-key' of Secret 'openai' is not one line of ASCII", id="empty"),
        pytest.param(
            {"api_key": b"sk-1\nsk-2"}, "Key 'api-key' of Secret 'openai' is not one line of ASCII", id="two lines"
        ),
        pytest.param(
            {"api_key": "sk-…".encode()}, "Key 'api-key' of Secret 'openai' is not one line of ASCII", id="an ellipsis"
        ),
        pytest.param(
            {"api_key": b"\xff\xfe"}, "Key 'api-key' of Secret 'openai' cannot be read: UnicodeDecodeError", id="bytes"
        ),
    ],
)
def test_says_what_is_missing_and_never_a_value(tmp_path: Path, keys: dict[str, bytes] | None, message: str) -> None:
    if keys is not None:
        mount(tmp_path, **keys)
    with pytest.raises(SecretNotFoundError) as raised:
        read_key(tmp_path, KEY)
    assert str(raised.value) == message


def test_a_folder_in_the_place_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "openai" / "api-key").mkdir(parents=True)
    with pytest.raises(SecretNotFoundError, match="cannot be read: IsADirectoryError"):
        read_key(tmp_path, KEY)


AWKWARD = 'a+/="\\&%41 b'


@pytest.mark.parametrize(
    "spelt",
    [
        pytest.param(AWKWARD, id="as it is"),
        pytest.param(json.dumps(AWKWARD)[1:-1], id="as JSON"),
        pytest.param(json.dumps(AWKWARD)[1:-1].replace("/", "\\/"), id="as JSON with its slashes escaped"),
        pytest.param(json.dumps(json.dumps(AWKWARD))[3:-3], id="as JSON within JSON"),
        pytest.param(repr(AWKWARD)[1:-1], id="as Python"),
        pytest.param(quote(AWKWARD, safe=""), id="in a URL"),
        pytest.param(quote(AWKWARD), id="in a URL's path"),
        pytest.param(quote_plus(AWKWARD), id="in a form"),
        pytest.param(base64.b64encode(AWKWARD.encode()).decode().rstrip("="), id="as base64"),
    ],
)
def test_a_secret_is_redacted_however_it_is_spelt(spelt: str) -> None:
    assert redact(f"no <{spelt}>, <{spelt}>!", [AWKWARD], "[key]") == "no <[key]>, <[key]>!"


def test_of_secrets_within_each_other_the_longest_is_redacted_first() -> None:
    assert redact("sk-12345 and sk-123", ["sk-123", "sk-12345"], "[key]") == "[key] and [key]"


def test_without_secrets_a_text_stays_as_it_is() -> None:
    assert redact("no sk-1", [], "[key]") == "no sk-1"


def test_the_keys_that_a_worker_sees_are_told_by_name_alone(tmp_path: Path) -> None:
    assert visible_keys(tmp_path / "nowhere") == []
    for secret, key in (("openai", "api-key"), ("openai", "other"), ("aws", "id"), ("openai", "..data")):
        (tmp_path / secret).mkdir(exist_ok=True)
        (tmp_path / secret / key).write_text("value")
    (tmp_path / "empty").mkdir()
    assert visible_keys(tmp_path) == ["aws/id", "openai/api-key", "openai/other"]
