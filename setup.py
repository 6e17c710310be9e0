"""The part of the build that pyproject.toml cannot express: fetch the page's viewer with npm."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "runtime" / "report" / "page"))
from openseadragon import VIEWER_PATH, fetch_viewer


class BuildWithViewer(build_py):
    """Fetch OpenSeadragon before the packages are collected; without npm, no page can be made."""

    def run(self) -> None:
        """Fetch, then collect."""
        if not VIEWER_PATH.is_file():
            try:
                fetch_viewer()
            except (RuntimeError, OSError) as error:
                self.warn(f"{error}; mclst is installed without its pages' viewer")
        super().run()


setup(cmdclass={"build_py": BuildWithViewer})
