"""A browser without a window and without a network, in which the pages are tested, timed and photographed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mclst.runtime.errors import ResourceError

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Path of a Chromium: what CHROMIUM names, else one on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser(width: int = 1400, height: int = 900, *, scale: float = 1.0) -> Iterator[Any]:
    """A Playwright browser context, its network off, its profile new and gone afterwards; sizes in CSS px.

    Raises ResourceError where Playwright or Chromium is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[dev]") from error
    program = find_chromium()
    if program is None:
        raise ResourceError("no Chromium is installed; install one, or name it in CHROMIUM")
    with sync_playwright() as driver, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
            offline=True,
            accept_downloads=True,
        )
        try:
            yield context
        finally:
            context.close()


def wait_for_picture(page: Any, seconds: float = 60.0) -> float:
    """Wait for a report's first picture, tissue and spots; ms after its opening. Raises TimeoutError."""
    # Asked from outside: the page's own policy forbids eval, with which Playwright's waiting works.
    asked = "performance.getEntriesByName('first-picture')[0]?.startTime ?? null"
    for _ in range(int(seconds / 0.02)):
        found = page.evaluate(asked)
        if found is not None:
            return float(found)
        page.wait_for_timeout(20)
    raise TimeoutError(f"{page.url} shows no picture after {seconds:g} s")
