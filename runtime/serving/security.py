"""TLS and bearer tokens of a connection to a server."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from mclst.runtime.errors import InputError, ResourceError, ServerError

TOKEN_VARIABLE = "MCLST_SERVER_TOKEN"
"""Environment variable with the bearer token; an option would be seen by other users of the machine."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")
UNTRUSTED = re.compile(
    r"certificate.?verify|verification check|handshake failed|peer name|self.signed|wrong version number",
    re.IGNORECASE,
)
"""Texts of OpenSSL's and gRPC's refusals of a certificate or of what is no TLS."""


@dataclass(frozen=True)
class Credentials:
    """How a client knows the server, and the server the client.

    ca: certificates to trust in place of the system's. token: sent as `Authorization: Bearer`.
    """

    ca: Path | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of_environment(cls, ca: Path | None) -> Credentials:
        """Take the token from MCLST_SERVER_TOKEN, if it is set; raises InputError if it can be none."""
        token = os.environ.get(TOKEN_VARIABLE) or None
        if token is not None and not TOKEN.fullmatch(token):
            raise InputError(
                f"{TOKEN_VARIABLE} holds spaces or other characters that no token has; set it again"
            )
        return cls(ca, token)

    def headers(self, *, encrypted: bool, host: str, address: str) -> dict[str, str] | None:
        """Return the headers of each request; raises InputError before a token goes unencrypted elsewhere."""
        if self.token is None:
            return None
        if not encrypted and host not in LOOPBACK:
            raise InputError(
                f"{address} is not encrypted, so {TOKEN_VARIABLE} would be readable on the way; use "
                "https:// or "
                "grpcs://, or unset it"
            )
        return {"authorization": f"Bearer {self.token}"}

    def context(self) -> ssl.SSLContext:
        """Return a TLS context that trusts `ca`, else the system; raises InputError if `ca` holds none."""
        try:
            return ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"{self.ca} cannot be read as certificates ({error.strerror or error}); give --server-ca "
                "a PEM file"
            ) from error

    def roots(self) -> bytes:
        """Return the trusted certificates as PEM: gRPC would take its own list in place of the system's."""
        self.context()
        if self.ca is not None:
            return self.ca.read_bytes()
        paths = ssl.get_default_verify_paths()
        parts = [Path(paths.cafile)] if paths.cafile else []
        if not parts and paths.capath:
            parts = sorted(Path(paths.capath).glob("*.[0-9]")) or sorted(Path(paths.capath).glob("*.crt"))
        roots = b"\n".join(part.read_bytes() for part in parts if part.is_file())
        if b"BEGIN CERTIFICATE" not in roots:
            raise ResourceError(
                "this machine has no trusted certificates; install ca-certificates, or give --server-ca"
            )
        return roots

    def hide(self, text: str) -> str:
        """Take the token out of a text, such as an error that a server sent back."""
        return text if self.token is None else text.replace(self.token, "…")


def untrusted(address: str, reason: str) -> ServerError | None:
    """Return the error for a refused certificate or a server without TLS; None for another reason."""
    if not UNTRUSTED.search(reason):
        return None
    return ServerError(
        f"{address} does not prove by TLS that it is this server ({reason}); check the address, or give its "
        "certificate authority with --server-ca"
    )
