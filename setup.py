"""What pyproject.toml cannot express: fetch the page's viewer with npm, and one wheel for all Pythons."""

from __future__ import annotations

import sys
import sysconfig
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


# The compiled library is loaded by ctypes and calls nothing of Python, so any Python from 3.11 on takes it.
# Builds without the global lock have no stable ABI.
ABI = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(cmdclass={"build_py": BuildWithViewer}, options={"bdist_wheel": ABI})
