"""Bundles at the Hugging Face hub: fetched into the hub's own cache, published in one commit."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from mclst.runtime.bundle.bundle import (
    GENE_TABLE,
    GRAPH_SUFFIXES,
    MANIFEST,
    PARITY_OUTPUT,
    PARITY_TILES,
    REQUIRED_FILES,
    Bundle,
)
from mclst.runtime.bundle.location import SCHEME, HubLocation
from mclst.runtime.bundle.manifest import CALIBRATION, Manifest, read_manifest
from mclst.runtime.errors import BundleError, InputError, ResourceError, write_error
from mclst.runtime.progress import Notify
from mclst.runtime.sharing.by_reference import check_reference, describe_reference, left_out
from mclst.runtime.sharing.card import card
from mclst.runtime.sharing.facts import describe
from mclst.runtime.sharing.licenses import check_may_publish
from mclst.runtime.sharing.verify import (
    CARD,
    COMPANIONS,
    RDF,
    SIGNATURE,
    TEST_INPUT,
    TEST_OUTPUT,
    check_no_extra_files,
    companions,
)

LONGEST_REASON = 200
INSTALL = "install mclst[hub]"


def bundle_folder(bundle: str | Path) -> Path:
    """Return the folder of a bundle here, or of hf://ORG/NAME@REVISION after getting it.

    Raises InputError for another form of address, and as `fetch` does.
    """
    if not (isinstance(bundle, str) and bundle.startswith(SCHEME)):
        return Path(bundle)
    try:
        return fetch(HubLocation.of(bundle))
    except ValueError as error:
        raise InputError(f"{error}; correct the address") from error


def fetch(location: HubLocation, notify: Notify = lambda text: None, *, partial: bool = False) -> Path:
    """Get a bundle from the hub, or from the hub's cache if it is there or nothing can be reached.

    Parameters
    ----------
    location : HubLocation
    notify : callable
        Called with the commit that a branch or tag stands for.
    partial : bool
        Accept a bundle published by reference, without its encoder's graphs.

    Returns
    -------
    Path
        The snapshot in the hub's cache; its files are not verified yet. Only the manifest, the files it lists
        and companions are fetched: no engines.

    Raises
    ------
    InputError
        If the repository, the revision or the bundle in it does not exist, or may not be read.
    BundleError
        If the encoder is published by reference alone.
    ResourceError
        If the hub cannot be reached and the bundle is not in the cache, or huggingface_hub is missing.
    OutputError
        If the cache cannot be written.
    """
    hub = _library()
    with _sentences(hub, location):
        revision = hub.HfApi().resolve_revision(location.repository, revision=location.revision)
        commit: str = revision.resolved
        pinned = HubLocation(location.repository, commit)
        if not location.is_commit:
            notify(f"{location} is commit {commit}; --bundle {pinned} stays with it")
        path = Path(hub.hf_hub_download(location.repository, MANIFEST, revision=commit))
        manifest = read_manifest(path)
        names = [MANIFEST, *manifest.files, *COMPANIONS]
        folder = hub.snapshot_download(
            location.repository, revision=commit, allow_patterns=[glob.escape(name) for name in names]
        )
    snapshot = Path(folder)
    _check_complete(pinned, manifest, snapshot, partial=partial)
    return snapshot


def _check_complete(location: HubLocation, manifest: Manifest, snapshot: Path, *, partial: bool) -> None:
    missing = [name for name in manifest.files if not (snapshot / name).is_file()]
    by_reference = set(missing) <= set(left_out(manifest))
    if not missing or (by_reference and partial):
        return
    if by_reference:
        raise BundleError(f"{location} {describe_reference(manifest)}")
    raise InputError(
        f"{location} lacks {', '.join(missing[:3])}, which its {MANIFEST} lists; tell its maker, or choose "
        "another revision"
    )


def publish(
    bundle: Bundle,
    location: HubLocation,
    *,
    private: bool = False,
    by_reference: bool = False,
    message: str = "",
    notify: Callable[[str], None] = lambda text: None,
) -> HubLocation:
    """Publish a bundle at the hub, in one commit, with a card.

    Parameters
    ----------
    bundle : Bundle
        Opened, so verified.
    location : HubLocation
        The repository, made if it does not exist, and its branch.
    private : bool
        Of a repository that is made.
    by_reference : bool
        Leave out the graphs with the encoder's weights, for a base model whose license forbids derivatives.
    message : str
        Of the commit.
    notify : callable
        Called with progress messages.

    Returns
    -------
    HubLocation
        With the commit.

    Raises
    ------
    BundleError
        If the folder holds other files, states no license, or its license or that of its base model forbids
        derivatives.
    InputError
        If the hub refuses, or the revision is a commit.
    ResourceError
        If the hub cannot be reached, or huggingface_hub is missing.
    """
    if location.is_commit:
        raise InputError(f"{location} is a commit, to which nothing can be added; give a branch, or none")
    facts = describe(bundle)
    check_no_extra_files(bundle)
    if by_reference:
        check_reference(bundle)
    else:
        check_may_publish(facts.about, str(bundle.path))
    if (bundle.path / SIGNATURE).is_file() and not (bundle.path / CARD).is_file():
        raise InputError(
            f"{bundle.path} is signed and has no {CARD}, which a push would add unsigned; write it with "
            "mclst-bundle card, then sign again"
        )
    hub = _library()
    names = [MANIFEST, *bundle.manifest.files, *companions(bundle.path)]
    excluded = set(left_out(bundle.manifest)) if by_reference else set()
    additions = [
        hub.CommitOperationAdd(name, str((bundle.path / name).resolve()))
        for name in names
        if name not in excluded
    ]
    if CARD not in names:
        text = card(facts, f"hf://{location.repository}")
        additions.append(hub.CommitOperationAdd(CARD, text.encode()))
    branch = location.revision or "main"
    with _sentences(hub, location):
        api = hub.HfApi()
        api.create_repo(location.repository, private=private or None, exist_ok=True)
        if branch != "main":
            api.create_branch(location.repository, branch=branch, exist_ok=True)
        stale = _stale(api, location.repository, branch, {addition.path_in_repo for addition in additions})
        notify(f"sending {len(additions)} files to {location}")
        bundle.check_unchanged()
        commit = api.create_commit(
            location.repository,
            [*additions, *(hub.CommitOperationDelete(name) for name in stale)],
            commit_message=message or f"Bundle {bundle.sha256[:16]}",
            revision=branch,
        )
    return HubLocation(location.repository, commit.oid)


def _stale(api: Any, repository: str, branch: str, sent: set[str]) -> list[str]:
    """What is of the bundle that was there before, its signature too; other files of the repository stay."""
    known = {name for names in REQUIRED_FILES.values() for name in names}
    known |= {CALIBRATION, GENE_TABLE, PARITY_TILES, PARITY_OUTPUT, SIGNATURE, RDF, TEST_INPUT, TEST_OUTPUT}
    return sorted(
        name
        for name in api.list_repo_files(repository, revision=branch)
        if name not in sent and (name in known or name.endswith(GRAPH_SUFFIXES))
    )


def _library() -> Any:
    try:
        import huggingface_hub

        utils: Any = import_module("huggingface_hub.utils")
    except ImportError as error:
        raise ResourceError(f"hf:// needs huggingface_hub ({error}); {INSTALL}") from error
    utils.disable_progress_bars()
    # What it warns of, such as a cached answer of an unreachable hub, is said by us or harmless.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


@contextmanager
def _sentences(hub: Any, location: HubLocation) -> Iterator[None]:
    """Turn the library's errors into sentences."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.RevisionResolutionError) as error:
        raise ResourceError(_unreachable(location)) from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(location, error.__cause__) from error
        raise ResourceError(_unreachable(location)) from error
    except errors.HfHubHTTPError as error:
        raise _refused(location, error) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{location} holds no {MANIFEST}, so no bundle; check the address") from error
    except (httpx2.HTTPError, errors.FileMetadataError) as error:
        raise ResourceError(f"{_unreachable(location)} ({_line(error)})") from error
    except RuntimeError as error:  # a thread's upload, around what went wrong
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(location, error.__cause__) from error
        if isinstance(error.__cause__, httpx2.HTTPError):
            raise ResourceError(f"the hub does not take {location} ({_line(error)}); run again") from error
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{location} is no repository ({_line(error)}); check the address") from error
    except OSError as error:
        cache = error.filename or hub.constants.HF_HUB_CACHE
        raise write_error(cache, error, "free space, or set HF_HOME to another folder") from error
    except (AssertionError, KeyError, TypeError, ValueError) as error:  # an answer that lacks what is due
        reason = f"{type(error).__name__}: {_line(error)}"
        raise InputError(
            f"what answers for {location} is no hub ({reason}); check HF_ENDPOINT, and upgrade "
            "huggingface_hub"
        ) from error


def _unreachable(location: HubLocation) -> str:
    return (
        f"{location} is not in the hub's cache and the hub cannot be reached; run once with a network, or "
        "copy "
        "the cache (HF_HOME) from another machine"
    )


def _refused(location: HubLocation, error: Any) -> Exception:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{location}: the hub has no such branch, tag or commit; check the revision")
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{location} is gated: accept its terms on its page, then log in with `hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{location} does not exist, or is private; check the address, or log in with `hf auth login` or "
            "HF_TOKEN"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{location} holds no {MANIFEST}, so no bundle; check the address")
    if status in (401, 403):
        return InputError(
            f"{location}: the hub does not allow this ({status}); log in with a token that may write"
        )
    if status >= 500 or status == 429:
        return ResourceError(f"the hub answers {status} for {location}; run again later")
    return InputError(f"the hub refuses {location} ({_line(error)}); check the address")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
