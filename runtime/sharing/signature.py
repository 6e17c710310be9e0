"""Signatures of a bundle by OpenSSF model signing: by key, by certificate, or keyless through Sigstore.

The signature covers every file of the folder but engines, which are built on each machine, and Git's own
files: https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.atomic import atomic_file, check_writable
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.manifest import ENGINES
from mclst.runtime.errors import BundleError, InputError, MclstError, ResourceError
from mclst.runtime.sharing.verify import SIGNATURE

LONGEST_REASON = 300
A_KEY = "an elliptic-curve key in PEM"
PUBLIC_KEY, CERTIFICATE = "-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class Signer:
    """Who signs. key: private key (PEM, elliptic curve); None: keyless. certificate, chain: of the key."""

    key: Path | None = None
    password: str | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Trusted:
    """Whose signature counts: a file with a public key or root certificates, or an identity of Sigstore's.

    identity, issuer: such as a@b.org and https://accounts.google.com.
    """

    pem: Path | None = None
    identity: str = ""
    issuer: str = ""

    @classmethod
    def of(cls, text: str) -> Trusted:
        """Parse a file's path, or IDENTITY,https://ISSUER; raises ValueError."""
        identity, comma, issuer = text.partition(",")
        if comma and issuer.startswith("https://") and identity:
            return cls(identity=identity, issuer=issuer)
        if not os.path.isfile(text):
            raise ValueError(
                f"{text!r} is neither a file with a public key or certificates nor IDENTITY,https://ISSUER"
            )
        return cls(pem=Path(text))

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})" if self.pem is None else str(self.pem)


def sign(bundle: Bundle, signer: Signer, *, overwrite: bool = False) -> Path:
    """Sign a bundle and its companions; model.sig goes beside them.

    Parameters
    ----------
    bundle : Bundle
        Verified.
    signer : Signer
    overwrite : bool
        Replace an existing signature.

    Returns
    -------
    Path
        The signature, in the format of a Sigstore bundle.

    Raises
    ------
    InputError
        If the key or certificate cannot be used, or Sigstore refuses.
    OutputError
        If the signature exists or cannot be written.
    ResourceError
        If model-signing is not installed.
    """
    path = bundle.path / SIGNATURE
    check_writable(path, overwrite=overwrite)
    signing, config = _library("signing")
    try:
        signing.set_hashing_config(config)
        if signer.key is None:
            signing.use_sigstore_signer(use_ambient_credentials=True)
        elif signer.certificate is None:
            # Bytes, whatever its annotation says: so cryptography wants it.
            password = None if signer.password is None else signer.password.encode()
            signing.use_elliptic_key_signer(private_key=signer.key, password=password)
        else:
            # model-signing reads no empty chain; a certificate in its own chain changes nothing.
            signing.use_certificate_signer(
                private_key=signer.key,
                signing_certificate=signer.certificate,
                certificate_chain=signer.chain or (signer.certificate,),
            )
        with atomic_file(path) as part:
            _ignore(config, (part.name,))
            with _named_connection():
                signing.sign(bundle.path, part)
    except (MclstError, MemoryError):
        raise
    except Exception as error:  # cryptography and sigstore raise many types
        if isinstance(error, OSError) and error.filename is not None:
            raise InputError(
                f"{error.filename} cannot be read ({error.strerror}); give a PEM file"
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        advice = f"give {A_KEY}, and the certificate made for it"
        if signer.key is None:
            advice = f"look at the network, or give --key, {A_KEY}"
        raise InputError(f"{bundle.path} cannot be signed ({_line(error)}); {advice}") from error
    bundle.check_unchanged()
    return path


def check_signature(bundle: Bundle, trusted: Trusted) -> None:
    """Check that a bundle is signed by who is trusted, and that each of its files is the signed one.

    Parameters
    ----------
    bundle : Bundle
        Opened, so that its files are those of the manifest.
    trusted : Trusted

    Raises
    ------
    BundleError
        If there is no signature, it is another's, or a file was changed, added or removed.
    InputError
        If the key or certificates cannot be read.
    ResourceError
        If model-signing is not installed.
    """
    path = bundle.path / SIGNATURE
    if not path.is_file():
        raise BundleError(
            f"{bundle.path} has no {SIGNATURE}, and a signature of {trusted} is required; get a signed "
            "bundle, or "
            "sign it with mclst-bundle sign"
        )
    verifying, config = _library("verifying")
    _ignore(config)
    try:
        verifying.set_hashing_config(config)
        _trust(verifying, trusted)
    except Exception as error:
        advice = "look at the network" if trusted.pem is None else "give a public key or certificates in PEM"
        raise InputError(
            f"{trusted} cannot be used to check signatures ({_line(error)}); {advice}"
        ) from error
    try:
        verifying.verify(bundle.path, path)
    except MemoryError:
        raise
    except Exception as error:  # cryptography and sigstore raise many types
        raise BundleError(
            f"{bundle.path} is not as {trusted} signed it ({_line(error)}); get the bundle again, or do "
            "not use it"
        ) from error
    bundle.check_unchanged()


@contextmanager
def _named_connection() -> Iterator[None]:
    """Tell a connection that fails, an OSError without a number, from a file that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise RuntimeError(_line(error)) from error


def _trust(verifying: Any, trusted: Trusted) -> None:
    if trusted.pem is None:
        verifying.use_sigstore_verifier(identity=trusted.identity, oidc_issuer=trusted.issuer)
        return
    text = trusted.pem.read_text(encoding="ascii")
    if PUBLIC_KEY in text:
        verifying.use_elliptic_key_verifier(public_key=trusted.pem)
    elif CERTIFICATE in text:
        verifying.use_certificate_verifier(certificate_chain=[trusted.pem])
    else:
        raise ValueError("it holds neither")


def _library(part: str) -> tuple[Any, Any]:
    """Return a configuration of `part` of model-signing, and one of hashing."""
    try:
        from importlib import import_module

        module = import_module(f"model_signing.{part}")
        hashing: Any = import_module("model_signing.hashing")
    except ImportError as error:
        raise ResourceError(f"signatures need model-signing ({error}); install mclst[sign]") from error
    # Links are those of the hub's cache; `open_bundle` refuses others.
    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=True)
    return module.Config(), config.set_allow_symlinks(True)


def _ignore(config: Any, names: Sequence[str] = ()) -> None:
    paths = [SIGNATURE, ENGINES, ".cache", *names]
    config.set_ignored_paths(paths=paths, ignore_git_paths=True)


def _line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:LONGEST_REASON]
