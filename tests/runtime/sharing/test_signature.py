"""Signatures: model-signing's own command accepts ours and refuses a changed byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from described_bundle import describe_bundle
from refusals import assert_refused

from mclst.runtime.cli.bundle import main
from mclst.runtime.cli.infer import main as infer

pytest.importorskip("model_signing", reason="model-signing is not installed")


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem and key.pub; cert.pem of that key, by root.pem; other.pub and other-root.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("keys")

    def write_key(name: str, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        encryption = (
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        )
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
        return key

    def write_certificate(
        name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool
    ) -> None:
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        subject = issuer if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "maker")])
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(by, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    key, root, other = write_key("key"), write_key("root-key"), write_key("other")
    write_key("locked", b"secret")
    write_certificate("cert", key, root, False)
    write_certificate("root", root, root, True)
    write_certificate("other-root", other, other, True)
    return folder


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    path = describe_bundle(small_bundle, tmp_path / "bundle")
    (path / "README.md").write_text("# Card")
    return path


def by_key(bundle: Path, keys: Path) -> None:
    done = run("sign", bundle, "--key", keys / "key.pem")
    assert done.stdout.strip() == str(bundle / "model.sig"), done.output


def by_certificate(bundle: Path, keys: Path) -> None:
    assert run("sign", bundle, "--key", keys / "key.pem", "--certificate", keys / "cert.pem").exit_code == 0


def they_accept(bundle: Path, keys: Path, *, certificate: bool = False) -> bool:
    """Ask model-signing's own verifier, with its own settings."""
    from model_signing import verifying

    config = verifying.Config()
    if certificate:
        config.use_certificate_verifier(certificate_chain=[keys / "root.pem"])
    else:
        config.use_elliptic_key_verifier(public_key=keys / "key.pub")
    try:
        config.verify(bundle, bundle / "model.sig")
    except ValueError:
        return False
    return True


def change(bundle: Path) -> None:
    content = bytearray((bundle / "README.md").read_bytes())
    content[0] ^= 1
    (bundle / "README.md").write_bytes(content)


def add_a_space(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text() + " ")


def test_model_signing_accepts_a_key_s_signature(bundle: Path, keys: Path) -> None:
    by_key(bundle, keys)
    assert they_accept(bundle, keys)
    change(bundle)
    assert not they_accept(bundle, keys)


def test_model_signing_accepts_a_certificate_s_signature(bundle: Path, keys: Path) -> None:
    by_certificate(bundle, keys)
    assert they_accept(bundle, keys, certificate=True)


@pytest.mark.parametrize(
    ("signed", "right", "wrong"),
    [(by_key, "key.pub", "other.pub"), (by_certificate, "root.pem", "other-root.pem")],
)
def test_who_is_trusted_decides(
    bundle: Path, keys: Path, signed: Callable[[Path, Path], None], right: str, wrong: str
) -> None:
    assert_refused(run("verify", bundle, "--require-signature", keys / right), 4, ("no model.sig", right))
    signed(bundle, keys)
    done = run("verify", bundle, "--require-signature", keys / right)
    assert done.exit_code == 0 and "over every file" in done.stderr
    assert_refused(run("verify", bundle, "--require-signature", keys / wrong), 4, ("is not as", wrong))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (change, "README.md"),
        (lambda bundle: (bundle / "NOTICE").write_text("more"), "NOTICE"),
        (lambda bundle: (bundle / "README.md").unlink(), "README.md"),
        (lambda bundle: (bundle / "model.sig").write_text("{}"), "is not as"),
        (add_a_space, "manifest.json"),
    ],
    ids=["a byte changed", "a file added", "a file removed", "another signature", "another manifest"],
)  # fmt: skip
def test_what_was_not_signed_is_refused(
    bundle: Path, keys: Path, damage: Callable[[Path], object], named: str
) -> None:
    by_key(bundle, keys)
    damage(bundle)
    assert run("verify", bundle).exit_code == 0
    assert_refused(run("verify", bundle, "--require-signature", keys / "key.pub"), 4, (named,))


def test_an_engine_built_here_does_not_break_the_signature(bundle: Path, keys: Path) -> None:
    by_key(bundle, keys)
    (bundle / "engines" / "x").mkdir(parents=True)
    (bundle / "engines" / "x" / "engine.plan").write_bytes(b"plan")
    done = run("verify", bundle, "--require-signature", keys / "key.pub")
    assert done.exit_code == 0 and "over every file but engines/" in done.stderr
    assert they_accept(bundle, keys)


def test_a_card_written_after_the_signature_asks_for_another(bundle: Path, keys: Path) -> None:
    by_key(bundle, keys)
    done = run("card", bundle, "--overwrite")
    assert (
        done.exit_code == 0
        and "model.sig is from before" in done.stderr
        and "sign --overwrite" in done.stderr
    )
    assert_refused(run("verify", bundle, "--require-signature", keys / "key.pub"), 4, ("README.md",))


def test_infer_refuses_what_is_not_signed(run_inputs: Path, keys: Path, tmp_path: Path) -> None:
    inputs = Path(shutil.copytree(run_inputs, tmp_path / "inputs"))
    words = [
        str(inputs / "slide.tif"),
        "--spots",
        str(inputs / "spots.csv"),
        "--no-html",
        "--no-picture",
        "-q",
    ]
    words += ["--bundle", str(inputs / "mclst-bundle"), "--out", str(tmp_path / "map.h5ad")]
    words += ["--require-signature", str(keys / "key.pub")]
    assert_refused(CliRunner().invoke(infer, words), 4, ("no model.sig",))
    assert not (tmp_path / "map.h5ad").exists()
    by_key(inputs / "mclst-bundle", keys)
    assert CliRunner().invoke(infer, words).exit_code == 0
    assert CliRunner().invoke(infer, [*words, "--server", "http://127.0.0.1:1"]).exit_code == 2


def test_a_connection_that_fails_is_no_file_that_cannot_be_written(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import signing

    def no_network(*_: object) -> None:
        raise OSError("HTTPSConnectionPool(host='fulcio'): Max retries exceeded")

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", lambda *_, **more: None)
    monkeypatch.setattr(signing.Config, "sign", no_network)
    assert_refused(run("sign", bundle), 4, ("HTTPSConnectionPool", "look at the network", "--key"))
    assert not (bundle / "model.sig").exists()


def test_keys_that_do_not_fit(bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(run("sign", bundle, "--key", keys / "key.pub"), 4, ("cannot be signed",))
    assert_refused(run("sign", bundle, "--key", keys / "none.pem"), 4, ("none.pem", "cannot be read"))
    words = ("--key", keys / "other.pem", "--certificate", keys / "cert.pem")
    assert_refused(run("sign", bundle, *words), 4, ("does not match",))
    assert_refused(run("sign", bundle, "--key", keys / "locked.pem"), 4, ("cannot be signed",))
    assert not (bundle / "model.sig").exists()
    monkeypatch.setenv("KEY_PASSWORD", "secret")
    assert run("sign", bundle, "--key", keys / "locked.pem", "--password-from", "KEY_PASSWORD").exit_code == 0
    assert run("verify", bundle, "--require-signature", keys / "locked.pub").exit_code == 0
    assert run("sign", bundle, "--certificate", keys / "cert.pem").exit_code == 2
    assert run("verify", bundle, "--require-signature", keys / "missing.pub").exit_code == 2
    assert_refused(run("verify", bundle, "--require-signature", keys / "key.pem"), 4, ("it holds neither",))
