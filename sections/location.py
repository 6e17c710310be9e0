"""Where a slide is: a path of this machine, or an address such as `s3://bucket/slide.svs`.

A path and an address share what the rest of the code asks for: `name`, `stem` and a text to show. The text of
an address leaves out user, password and query, which may hold a signature; only the connection sees them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

SCHEMES = ("s3", "gs", "https", "http")
BUCKETS = ("s3", "gs")
FOLDER_SUFFIX = ".zarr"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# RFC 3986: reserved, unreserved, and the percent sign of what is quoted already.
_SAFE = ":/?#[]@!$&'()*+,;=-._~%"


@dataclass(frozen=True)
class RemoteLocation:
    """An object, or a folder of objects, at a server.

    Attributes
    ----------
    url : str
        The whole address, secrets included; never shown.
    scheme : str
        One of SCHEMES.
    """

    url: str = field(repr=False)
    scheme: str

    @classmethod
    def of(cls, text: str) -> RemoteLocation:
        """Parse an address; raises ValueError with a sentence that repeats no secret."""
        match = _SCHEME.match(text)
        scheme = match[1].lower() if match else ""
        if match is None or scheme not in SCHEMES:
            raise ValueError(
                f"a slide at {scheme or '?'}:// cannot be read; the schemes are {', '.join(SCHEMES)}"
            )
        if not text.isprintable():
            raise ValueError("the slide's address holds control characters; write it again")
        rest = text[match.end() :]
        # A key of a bucket is taken as it is; an address may be quoted already.
        url = f"{scheme}://{rest if scheme in BUCKETS else quote(rest, safe=_SAFE)}"
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"the slide's address is no URL ({error}); write it again") from error
        location = cls(url, scheme)
        if not parts.hostname or not parts.path.strip("/"):
            raise ValueError(f"{location} names no slide; give the address of one object")
        if scheme == "http" and parts.password is not None and parts.hostname not in LOOPBACK:
            raise ValueError(f"{location} is not encrypted, so its password would be readable; use https://")
        return location

    @property
    def host(self) -> str:
        """Host and port of a server, or the bucket."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def key(self) -> str:
        """Path at the host, as quoted in the address, or within the bucket."""
        return urlsplit(self.url).path.lstrip("/")

    @property
    def name(self) -> str:
        """Last component of the path."""
        last = self.key.rstrip("/").rpartition("/")[2]
        name = last if self.scheme in BUCKETS else unquote(last)
        # A name is also that of files to write.
        return name if name.isprintable() and "/" not in name and name not in (".", "..") else last

    @property
    def stem(self) -> str:
        """Name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def is_folder(self) -> bool:
        """Whether it is the folder of a Zarr: it ends with `.zarr` or `/`."""
        return self.key.endswith("/") or self.name.endswith(FOLDER_SUFFIX)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}/{self.key}"


SlideLocation = Path | RemoteLocation


def is_address(text: str) -> bool:
    """Whether a text begins with a scheme, known or not."""
    return _SCHEME.match(text) is not None


def slide_location(value: str | Path | RemoteLocation) -> SlideLocation:
    """Take a text with a scheme as an address, any other as a path; raises ValueError for other schemes."""
    if isinstance(value, str) and is_address(value):
        return RemoteLocation.of(value)
    return Path(value) if isinstance(value, str) else value


def local_path(location: SlideLocation | None) -> Path | None:
    """Return a location's path, None if it is elsewhere."""
    return location if isinstance(location, Path) else None
