"""Invalid settings, keys, and origins."""

import pytest

from pianissimo.errors import OptionError
from pianissimo.serve.access import auth
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import ClientSecrets, KeyRing, key_of
from pianissimo.serve.access.keys import ApiKey, Limits
from pianissimo.serve.errors import Refusal
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
        {"api_keys": ("a", "a")},
        {"api_keys": ("a", ApiKey("key-1", "b"))},
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
    ring = KeyRing(Settings(api_keys=("a", ApiKey("bob", "b"))).keys, "boss")
    found = [ring.account("a"), ring.account("b")]
    assert [account and account.name for account in found] == ["key-1", "bob"]
    assert found == [*ring.accounts] and ring.account("a") is found[0]
    assert not any(ring.account(key) for key in ("", None, "c", "boss", "ab", "bob", "key-1"))
    assert ring.admits_admin("boss") and not ring.admits_admin("a")
    everybody = KeyRing([])
    assert everybody.account(None) is everybody.account("any") is everybody.accounts[0]
    assert everybody.admits_admin(None)


def test_no_more_secrets_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MOST_SECRETS", 2)
    secrets, account = ClientSecrets(), Account("a", Limits())
    secrets.make({}, 0, account)  # expired at once, so it does not count
    for _ in range(2):
        found, _ = secrets.make({}, 60, account)
        assert secrets.find(found) is not None
    with pytest.raises(Refusal, match="too many") as refused:
        secrets.make({}, 60, account)
    assert refused.value.status == 429


def test_secrets_expire() -> None:
    made = ClientSecrets()
    maker = Account("alice", Limits())
    secret, _ = made.make({"type": "transcription"}, 60, maker)
    old, _ = made.make({}, -1, maker)
    found = made.find(secret)
    assert found is not None and found.session == {"type": "transcription"}
    assert found.account is maker
    assert made.find(old) is None and made.find("ek_") is None and made.find(None) is None
