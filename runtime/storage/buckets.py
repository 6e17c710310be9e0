"""Objects of s3:// and gs:// buckets, by s3fs and gcsfs with the environment's credentials."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mclst.runtime.storage.remote import WHOLE, Answer, Changed, Refused, Server, Span, Transient, Version
from mclst.sections.location import RemoteLocation

PUBLIC = "for a public bucket set FSSPEC_S3_ANON=true"
BLOCK_BYTES = 1 << 20


def open_bucket(location: RemoteLocation) -> Server:
    """Open the connection to a location's bucket; raises ImportError if a package is missing."""
    return S3Server(location) if location.scheme == "s3" else GcsServer(location)


class S3Server(Server):
    """A bucket behind Amazon's API; its endpoint is the environment's, AWS_ENDPOINT_URL."""

    def __init__(self, location: RemoteLocation) -> None:
        import s3fs

        self._fs: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        self._fs.retries = 1  # RemoteObjects tries again
        self.loop = self._fs.loop
        self._bucket, self._key = location.host, location.key
        versions = parse_qs(urlsplit(location.url).query).get("versionId", [])
        self._version = {"VersionId": versions[0]} if versions else {}

    async def get(self, key: str, span: Span | None, limit: int, version: Version | None) -> Answer | None:
        """Ask once; see Server."""
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        options: dict[str, Any] = dict(self._version)
        if span is not None:
            options["Range"] = span.header
        if version is not None and version.etag:
            options["IfMatch"] = version.etag
        name = f"{self._key.rstrip('/')}/{key}" if key else self._key
        try:
            response = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=name, **options)
            return await _read_s3(response, span, limit)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise Refused(f"is refused; check the environment's credentials, or {PUBLIC}") from error
        except NoCredentialsError as error:
            raise Refused(f"needs credentials, and the environment has none; {PUBLIC}") from error
        except (BotoCoreError, ClientError, TimeoutError, OSError) as error:
            raise _of_s3(error) from error

    def close(self) -> None:
        """Close the session."""
        if self._fs._s3 is not None:
            with suppress(Exception):
                self._fs.close_session(self.loop, self._fs._s3creator)


async def _read_s3(response: dict[str, Any], span: Span | None, limit: int) -> Answer:
    content_range, modified = str(response.get("ContentRange") or ""), response.get("LastModified")
    length, size = limit, None
    if span is not None and content_range:
        length, size = span.within(content_range)
    elif span is not None and (span.first or int(response.get("ContentLength", limit + 1)) > span.length):
        raise Refused(WHOLE)
    body, parts, received = response["Body"], [], 0
    try:
        while part := await body.read(BLOCK_BYTES):
            received += len(part)
            if received > length:
                reason = f"more than the {length:,} bytes it may"
                raise ValueError(f"it has {reason}") if span is None else Refused(f"is sent with {reason}")
            parts.append(part)
    finally:
        body.close()
    if size is not None and received != length:
        raise Transient("the connection was cut")
    when = "" if modified is None else f"{modified:%a, %d %b %Y %H:%M:%S GMT}"
    version = Version(received if size is None else size, str(response.get("ETag", "")), when)
    return Answer(b"".join(parts), version)


def _of_s3(error: BaseException) -> Exception:
    """Classify what s3fs raises, in words that repeat no address."""
    response = getattr(error.__cause__, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    if status == 412 or code == "PreconditionFailed":
        return Changed("another ETag")
    if status == 416 or code == "InvalidRange":
        return Refused("has none of the bytes asked for; upload it again")
    if 300 <= status < 500 and status not in (408, 429):
        return Refused(f"is answered with status {status} ({code[:40]}); check the address")
    return Transient(f"status {status}" if status else f"the connection failed, {type(error).__name__}")


class GcsServer(Server):
    """A bucket of Google Cloud Storage: gcsfs has the credentials, addresses and session."""

    def __init__(self, location: RemoteLocation) -> None:
        import gcsfs

        self._fs: Any = gcsfs.GCSFileSystem(
            skip_instance_cache=True, use_listings_cache=False, session_kwargs={"auto_decompress": False}
        )
        self.loop = self._fs.loop
        self._path = f"{location.host}/{location.key}"

    async def get(self, key: str, span: Span | None, limit: int, version: Version | None) -> Answer | None:
        """Ask once; see Server."""
        from mclst.runtime.storage.http import ask

        await self._fs._set_session()
        headers: dict[str, str] = {}
        if self._fs.credentials is not None:
            await asyncio.to_thread(self._fs.credentials.apply, headers)  # it may ask for a new token
        url = self._fs.url(f"{self._path.rstrip('/')}/{key}" if key else self._path)
        return await ask(self._fs.session, url, headers, span, limit)

    def close(self) -> None:
        """Close the session."""
        session = self._fs._session
        if session is not None:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.close(), self.loop).result(timeout=1)
