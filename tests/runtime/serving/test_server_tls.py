"""A server by TLS with a certificate authority of its own, and bearer tokens: on the loopback."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_server import FakeServer
from refusals import assert_refused

from mclst.runtime.cli.infer import main
from mclst.runtime.errors import InputError
from mclst.runtime.serving.security import Credentials

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
pytest.importorskip("cryptography", reason="cryptography is not installed")

TOKEN = "aTokenOfTheTests.0123456789"
ENCRYPTED = ("https", "grpcs")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; server.key and server.pem for 127.0.0.1; old.pem, expired; elsewhere.pem for another host."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)

    def write(name: str, subject: str, alternative: x509.GeneralName, days: int, ca: bool = False) -> None:
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        issuer = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests")]))
            .public_key((ca_key if ca else key).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
            )
        )
        if ca:
            builder = builder.add_extension(issuer, critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    here = x509.IPAddress(ip_address("127.0.0.1"))
    write("ca", "Tests", x509.DNSName("tests.invalid"), 10, ca=True)
    write("server", "server", here, 10)
    write("old", "server", here, -1)
    write("elsewhere", "elsewhere", x509.DNSName("elsewhere.invalid"), 10)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    return folder


@pytest.fixture
def here(tmp_path: Path, run_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("slide.tif", "spots.csv"):
        shutil.copy(run_inputs / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MCLST_SERVER_TOKEN", raising=False)
    return tmp_path


def infer(url: str, *words: object) -> Result:
    options = ["slide.tif", "--spots", "spots.csv", "--no-picture", "--no-html", "-q", "--server", url]
    return CliRunner().invoke(main, [*options, "--server-patience", "60", *map(str, words)])


def served(
    folder: Path, run_inputs: Path, protocol: str, name: str = "server", token: str | None = None
) -> FakeServer:
    pair = (folder / "server.key", folder / f"{name}.pem")
    return FakeServer(run_inputs / "mclst-bundle", protocol, certificate=pair, token=token)


@pytest.mark.parametrize("protocol", ENCRYPTED)
def test_a_token_goes_by_tls_and_into_no_file(
    here: Path, run_inputs: Path, certificates: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(certificates, run_inputs, protocol, token=TOKEN) as server:
        words = (server.url, "--server-ca", certificates / "ca.pem")
        refused = infer(*words)
        assert_refused(refused, 4, ("requires authorization", "MCLST_SERVER_TOKEN"))
        monkeypatch.setenv("MCLST_SERVER_TOKEN", TOKEN)
        done = infer(*words)
        assert done.exit_code == 0, done.output
        monkeypatch.setenv("MCLST_SERVER_TOKEN", "anotherToken")
        # The server of the tests repeats what it got; the sentence does not.
        refused = infer(*words, "--out", "other.h5ad")
        assert_refused(refused, 4, ("requires authorization", "Bearer …"))
        assert "anotherToken" not in refused.output
    assert json.loads((here / "slide.run.json").read_text())["server"]["url"] == server.url
    for path in here.iterdir():
        assert TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize("protocol", ENCRYPTED)
@pytest.mark.parametrize("name", ["server", "old", "elsewhere"])
def test_a_certificate_that_is_not_trusted_is_refused_at_once(
    here: Path, run_inputs: Path, certificates: Path, protocol: str, name: str
) -> None:
    with served(certificates, run_inputs, protocol, name) as server:
        # Of "server" nothing is wrong but that its authority is not named.
        words = () if name == "server" else ("--server-ca", certificates / "ca.pem")
        assert_refused(infer(server.url, *words), 4, (server.url, "does not prove by TLS", "--server-ca"))
        assert server.n_requests == server.metadata_requests == 0


@pytest.mark.parametrize("protocol", ENCRYPTED)
def test_a_server_without_tls_is_refused_at_once(here: Path, run_inputs: Path, protocol: str) -> None:
    with FakeServer(run_inputs / "mclst-bundle", protocol.removesuffix("s")) as server:
        url = f"{protocol}://127.0.0.1:{server.port}"
        assert_refused(infer(url), 4, ("does not prove by TLS",))


def test_the_system_s_trust_store_is_used(
    here: Path, run_inputs: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    for protocol in ENCRYPTED:
        with served(certificates, run_inputs, protocol) as server:
            done = infer(server.url, "--overwrite")
            assert done.exit_code == 0, done.output


def test_options_that_do_not_fit(here: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer("http://127.0.0.1:9", "--server-ca", certificates / "ca.pem").exit_code == 2
    assert_refused(infer("https://127.0.0.1:9", "--server-ca", "none.pem"), 4, ("none.pem", "PEM"))
    assert_refused(infer("grpcs://127.0.0.1:9", "--server-ca", "spots.csv"), 4, ("spots.csv", "PEM"))
    monkeypatch.setenv("MCLST_SERVER_TOKEN", "two words")
    assert_refused(infer("https://127.0.0.1:9"), 4, ("MCLST_SERVER_TOKEN", "spaces"))


def test_a_token_does_not_go_unencrypted_to_another_machine() -> None:
    credentials = Credentials(token=TOKEN)
    assert TOKEN not in repr(credentials)
    assert credentials.headers(encrypted=True, host="lab", address="https://lab") is not None
    assert credentials.headers(encrypted=False, host="127.0.0.1", address="http://127.0.0.1") is not None
    with pytest.raises(InputError, match="is not encrypted"):
        credentials.headers(encrypted=False, host="lab", address="http://lab:8000")
