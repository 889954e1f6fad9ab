"""TLS: the same server behind a certificate."""

import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from pianissimo.errors import OptionError
from pianissimo.serve.settings import Settings

openssl = shutil.which("openssl")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if openssl is None:
        pytest.skip("no openssl command to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    return certificate, key


def test_requests_and_sockets_over_tls(pair: tuple[Path, Path], tiny_model_folder: Path) -> None:
    certificate, key = pair
    command = [sys.executable, "-m", "pianissimo", "serve", "--port", "0", "--verbose"]
    model = ["--model", str(tiny_model_folder)]
    tls = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    process = subprocess.Popen([*command, *model, *tls], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        place = None
        for line in process.stderr:
            if found := re.search(r"running on https://(127.0.0.1:\d+)", line):
                place = found[1]
                break
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"https://{place}/healthz", verify=trusting).text == "ok\n"
        with connect(f"wss://{place}/v1/stream", ssl=trusting) as socket:
            socket.send('{"type": "start"}')
            assert '"ready"' in socket.recv(timeout=60)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://{place}/healthz")
    finally:
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 0
        process.stderr.close()


def test_half_a_pair_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    Settings(tls_certificate=certificate, tls_key=key)
    with pytest.raises(OptionError, match="needs both"):
        Settings(tls_certificate=certificate)
    with pytest.raises(OptionError, match="cannot be used for TLS"):
        Settings(tls_certificate=certificate, tls_key=tmp_path / "none.pem")
    with pytest.raises(OptionError, match="cannot be used for TLS"):
        Settings(tls_certificate=key, tls_key=key)
