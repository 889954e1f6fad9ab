"""Settings that make no sense, keys, and origins."""

import pytest

from pianissimo.errors import OptionError
from pianissimo.serve.auth import ClientSecrets, KeyRing, key_of
from pianissimo.serve.settings import Settings


@pytest.mark.parametrize(
    "values",
    [
        {"host": "0.0.0.0"},
        {"host": "example.org"},
        {"max_streams": 0},
        {"port": 70_000},
        {"largest_upload_mb": 0.0},
        {"linger_seconds": 9.0, "resume_seconds": 5.0},
        {"api_keys": (" ",)},
    ],
)
def test_what_makes_no_sense_is_refused(values: dict) -> None:
    with pytest.raises(OptionError):
        Settings(**values)


def test_only_this_machine_needs_no_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert Settings(host=host).loopback
    assert not Settings(host="0.0.0.0", insecure=True).loopback
    assert not Settings(host="::", api_keys=("k",)).loopback


def test_keys_come_in_headers_or_among_subprotocols() -> None:
    assert key_of({"authorization": "Bearer a"}) == "a"
    assert key_of({"authorization": "token a"}) == "a"
    assert key_of({"authorization": "Basic a"}) is None
    assert key_of({"sec-websocket-protocol": "token, a"}) == "a"
    offered = "realtime, openai-insecure-api-key.a"
    assert key_of({"sec-websocket-protocol": offered}) == "a"
    assert key_of({}) is None


def test_a_key_ring_admits_its_keys_only() -> None:
    ring = KeyRing(["a", "b"], "boss")
    assert ring.admits("a") and ring.admits("b")
    assert not any(ring.admits(key) for key in ("", None, "c", "boss", "ab"))
    assert ring.admits_admin("boss") and not ring.admits_admin("a")
    assert KeyRing([]).admits(None) and KeyRing([]).admits_admin(None)


def test_secrets_expire() -> None:
    made = ClientSecrets()
    secret, _ = made.make({"type": "transcription"}, 60)
    old, _ = made.make({}, -1)
    assert made.session(secret) == {"type": "transcription"}
    assert made.session(old) is None and made.session("ek_") is None and made.session(None) is None
