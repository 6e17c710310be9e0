"""Open pages in a headless, offline Chromium."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mclst.runtime.errors import ResourceError, needs_extra

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

PATIENCE_MS = 600_000.0
"""How long a step may take; a busy machine holds a browser up for longer than Playwright's 30 s."""


def find_chromium() -> str | None:
    """Return the path of Chromium: $CHROMIUM, else the first on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser(width: int = 1400, height: int = 900, *, scale: float = 1.0) -> Iterator[Any]:
    """Open an offline Playwright context with a temporary profile; sizes in CSS px.

    Raises ResourceError if Playwright or Chromium is not installed.
    """
    with needs_extra("dev"):
        from playwright.sync_api import sync_playwright
    program = find_chromium()
    if program is None:
        raise ResourceError("no Chromium is installed; install one, or set CHROMIUM to its path")
    with sync_playwright() as driver, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
            offline=True,
            accept_downloads=True,
            timeout=PATIENCE_MS,
        )
        context.set_default_timeout(PATIENCE_MS)
        try:
            yield context
        finally:
            context.close()


def wait_until(page: Any, condition: str, timeout_s: float = PATIENCE_MS / 1000) -> Any:
    """Poll a JavaScript expression until it is true; return its value. Raises TimeoutError."""
    # Playwright's own waiting uses eval, which the page's policy forbids.
    for _ in range(int(timeout_s / 0.02)):
        if value := page.evaluate(condition):
            return value
        page.wait_for_timeout(20)
    raise TimeoutError(f"{page.url}: {condition} is not true after {timeout_s:g} s")


def wait_for_picture(page: Any) -> float:
    """Wait for the first picture of a map's page, tissue and spots; return ms since its opening."""
    return float(wait_until(page, "performance.getEntriesByName('first-picture')[0]?.startTime"))
