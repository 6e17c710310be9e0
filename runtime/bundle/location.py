"""Where a bundle is: a folder, or a repository of the Hugging Face hub and its cache on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_LOCATION = re.compile(
    rf"hf://(?:models/)?(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[\w.][\w./-]{{0,200}}))?", re.ASCII
)
_SNAPSHOT = re.compile(rf"models--(?P<org>{_NAME}?)--(?P<name>{_NAME})", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubLocation:
    """A repository at the hub: "org/name", and a branch, tag or commit; None: its main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> HubLocation:
        """Parse `hf://org/name` or `hf://org/name@revision`; raises ValueError."""
        match = _LOCATION.fullmatch(text)
        if match is None or ".." in text:
            raise ValueError(f"{text!r} is not hf://ORG/NAME or hf://ORG/NAME@REVISION")
        return cls(match["repository"], match["revision"])

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


BundleLocation = Path | HubLocation


def local(location: BundleLocation) -> Path | None:
    """Return a location's folder, None if it is at the hub."""
    return location if isinstance(location, Path) else None


def cached_snapshot(folder: Path) -> HubLocation | None:
    """Return the repository and commit of a folder of the hub's cache; None for any other folder.

    The cache's layout is `models--ORG--NAME/snapshots/COMMIT`, whose files are links into
    `models--ORG--NAME/blobs`: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    folder = folder.absolute()
    match = _SNAPSHOT.fullmatch(folder.parent.parent.name)
    if match is None or folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return None
    return HubLocation(f"{match['org']}/{match['name']}", folder.name)


def links_into_cache(folder: Path, path: Path) -> bool:
    """Whether `path` of a snapshot `folder` links to a file of the same repository's blobs."""
    if cached_snapshot(folder) is None:
        return False
    target = path.resolve()
    return target.is_file() and target.parent == (folder.absolute().parent.parent / "blobs").resolve()
