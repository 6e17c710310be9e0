"""OpenSeadragon, which the pages carry: where it is, and how an installation gets it.

Installing from a clone fetches it where npm is at hand (`setup.py`); `python -m mclst.runtime.report.page.openseadragon` does so later.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "openseadragon@6.1.1"
SHA512 = "g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw=="
"""Of the package as npm serves it, base64."""
INSIDE = ("package/build/openseadragon/openseadragon.min.js", "package/LICENSE.txt")
PLACE = Path(__file__).resolve().parent / "browser" / "openseadragon.min.js"
SECONDS = 120


def fetch_viewer(place: Path = PLACE) -> Path:
    """Take OpenSeadragon out of its npm package, checked against SHA512, and put it to `place` with its licence on top.

    Raises RuntimeError in a sentence where npm is missing or fails, or the package is another; OSError where the folder
    cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
        try:
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
            (archive,) = Path(folder).glob("*.tgz")
        except FileNotFoundError as error:
            raise RuntimeError("npm is not installed, which OpenSeadragon is fetched with") from error
        except (subprocess.SubprocessError, ValueError) as error:
            told = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise RuntimeError(f"npm cannot fetch {PACKAGE} ({told[-1] if told else error})") from error
        content = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise RuntimeError(f"npm's {PACKAGE} is not the one that mclst was tested with; its SHA-512 differs")
    script, licence = (_member(content, name) for name in INSIDE)
    part = place.with_suffix(".part")
    part.write_bytes(b"/*!\n" + licence.replace(b"*/", b"* /").strip() + b"\n*/\n" + script)
    part.replace(place)
    return place


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = tar.extractfile(name)
        assert found is not None
        return found.read()


def main() -> None:
    """Fetch it into this installation."""
    try:
        print(fetch_viewer())
    except (RuntimeError, OSError) as error:
        sys.exit(f"Error: {error}; put openseadragon.min.js to {PLACE} yourself")


if __name__ == "__main__":
    main()
