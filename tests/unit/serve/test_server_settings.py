"""Invalid settings, keys, and origins."""

import random

import pytest

from pianissimo.errors import OptionError
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
        {"replica": "a.b"},
        {"replicas": 0},
        {"checkpoint_seconds": -1.0},
        {"signing_key": "short"},
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


def test_servers_with_one_signing_key_accept_each_others_secrets() -> None:
    ring = KeyRing([ApiKey("alice", "a")])
    first, second = (ClientSecrets(ring, "one key for all servers") for _ in range(2))
    secret, _ = first.make({"type": "transcription"}, 60, ring.accounts[0])
    found = second.find(secret)
    assert found is not None and found.session == {"type": "transcription"}
    assert found.account is ring.accounts[0]
    for changed in (
        secret[:-1],
        secret[:8] + "x" + secret[9:],
        secret.partition(".")[0],
        "ek_.",
        "",
    ):
        assert second.find(changed) is None
    others = ClientSecrets(ring), ClientSecrets(ring, "a key of other servers")
    assert not any(other.find(secret) for other in others)
    assert ClientSecrets(KeyRing([]), "one key for all servers").find(secret) is None


def test_a_session_that_fits_in_no_header_gets_no_secret() -> None:
    ring = KeyRing([])
    noise = "".join(map(chr, random.Random(1).choices(range(33, 127), k=8000)))
    with pytest.raises(Refusal, match="too large") as refused:
        ClientSecrets(ring).make({"prompt": noise}, 60, ring.accounts[0])
    assert refused.value.status == 413


def test_replicas_divide_the_limits_of_a_key() -> None:
    limits = Limits(streams=4, audio_seconds_per_minute=90.0, upload_mb=5.0)
    (account,) = KeyRing([ApiKey("alice", "a", limits)], replicas=3).accounts
    assert account.limits == Limits(2, 30.0, 5.0)


def test_secrets_expire() -> None:
    ring = KeyRing([ApiKey("alice", "a")])
    made, (maker,) = ClientSecrets(ring), ring.accounts
    secret, _ = made.make({"type": "transcription"}, 60, maker)
    old, _ = made.make({}, -1, maker)
    found = made.find(secret)
    assert found is not None and found.session == {"type": "transcription"}
    assert found.account is maker
    assert made.find(old) is None and made.find("ek_") is None and made.find(None) is None
