"""Keys with limits: reading them, metering, and refusals."""

from pathlib import Path

import pytest
from clock import Clock

from pianissimo.errors import OptionError
from pianissimo.serve.access import accounts
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.keys import ApiKey, Limits, read_keys
from pianissimo.serve.errors import Refusal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(accounts, "time", clock)
    return clock


def refused(account: Account) -> int:
    """After how many seconds the account may send audio again."""
    with pytest.raises(Refusal, match="s of audio per minute") as caught:
        account.check_audio()
    assert caught.value.status == 429
    return int(caught.value.headers["retry-after"])


def test_keys_are_read_with_their_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        '[alice]\nkey = "a=1"\nstreams = 2\naudio_seconds_per_minute = 90.5\nupload_mb = 3\n'
        '["Bob & Co"]\nkey = "b"\n'
    )
    alice, bob = read_keys(path)
    assert alice == ApiKey("alice", "a=1", Limits(2, 90.5, 3)) and "a=1" not in repr(alice)
    assert bob == ApiKey("Bob & Co", "b", Limits())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "cannot be read"),
        ("[a]\n", "write"),
        ('a = "secret"\n', "write"),
        ('[a]\nkey = "secret"\nstream = 1\n', "unknown key 'stream' in a"),
        ('[a]\nkey = "secret"\nstreams = 0\n', "streams of a key"),
        ('[a]\nkey = "secret"\nstreams = 1.5\n', "streams of a key"),
        ('[a]\nkey = "secret"\nupload_mb = true\n', "upload_mb of a key"),
        ('[a]\nkey = "secret"\naudio_seconds_per_minute = nan\n', "audio_seconds_per_minute"),
        ('[a]\nkey = " "\n', "must not be empty"),
        ('[anyone]\nkey = "secret"\n', "clients without keys"),
    ],
)
def test_a_damaged_file_is_refused_without_showing_keys(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(OptionError, match="cannot be read"):
        read_keys(tmp_path / "missing.toml")


def test_audio_is_allowed_by_the_minute(clock: Clock) -> None:
    account = Account("alice", Limits(audio_seconds_per_minute=30.0))
    for _ in range(5):  # at the rate of the allowance there is no end
        account.check_audio()
        account.record_audio(29.0)
        clock.now += 58.0
    account.check_audio()
    account.record_audio(30.0)
    assert refused(account) == 1
    clock.now += 2.0
    account.check_audio()
    account.record_audio(61.0)  # accepted whole, then repaid
    assert refused(account) == 120
    clock.now += 119.0
    assert refused(account) == 1
    clock.now += 2.0
    account.check_audio()
    assert account.audio_seconds == 5 * 29 + 91 and account.refused == 3


def test_what_has_no_limit_is_only_counted() -> None:
    account = Account("bob", Limits())
    for _ in range(3):
        account.acquire_stream()
        account.record_audio(1e6)
        account.check_audio()
    account.release_stream()
    assert (account.streams, account.streams_opened, account.audio_seconds) == (2, 3, 3e6)
    assert account.largest_upload_bytes(5_000_000) == 5_000_000


def test_streams_and_uploads_have_bounds() -> None:
    account = Account("carol", Limits(streams=1, upload_mb=2))
    account.acquire_stream()
    with pytest.raises(Refusal, match="all 1 streams of this key") as caught:
        account.acquire_stream()
    assert caught.value.close_code == 1013 and account.streams_opened == 1
    account.release_stream()
    account.acquire_stream()
    assert account.largest_upload_bytes(5_000_000) == 2_000_000
    assert account.largest_upload_bytes(1_000_000) == 1_000_000
