"""Locate and fetch OpenSeadragon, the viewer that pages embed.

`setup.py` fetches it at installation if npm is available. To fetch it later, run
`python -m mclst.runtime.report.page.openseadragon`.
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
"""Digest of the npm package, base64."""
MEMBERS = ("package/build/openseadragon/openseadragon.min.js", "package/LICENSE.txt")
VIEWER_PATH = Path(__file__).resolve().parent / "browser" / "openseadragon.min.js"
TIMEOUT_S = 120


def check_viewer() -> None:
    """Raise ResourceError if this installation lacks the viewer that pages embed."""
    from mclst.runtime.errors import ResourceError  # setup.py loads this file alone

    if not VIEWER_PATH.is_file():
        raise ResourceError(
            "the viewer OpenSeadragon is not in this installation, so no page can be made; "
            "install npm and run python -m mclst.runtime.report.page.openseadragon"
        )


def fetch_viewer(path: Path = VIEWER_PATH) -> Path:
    """Extract OpenSeadragon from its npm package to `path`, with its license prepended.

    Raises
    ------
    RuntimeError
        If npm is missing or fails, or the package's SHA-512 differs.
    OSError
        If the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder)
            (archive,) = Path(folder).glob("*.tgz")
        except FileNotFoundError as error:
            raise RuntimeError("npm, which fetches OpenSeadragon, is not installed") from error
        except (subprocess.SubprocessError, ValueError) as error:
            output = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise RuntimeError(f"npm cannot fetch {PACKAGE} ({output[-1] if output else error})") from error
        content = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise RuntimeError(f"npm's {PACKAGE} is not the one that mclst was tested with; its SHA-512 differs")
    script, license_text = (_read_member(content, name) for name in MEMBERS)
    part = path.with_suffix(".part")
    part.write_bytes(b"/*!\n" + license_text.replace(b"*/", b"* /").strip() + b"\n*/\n" + script)
    part.replace(path)
    return path


def _read_member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


def main() -> None:
    """Fetch the viewer into this installation."""
    try:
        print(fetch_viewer())
    except (RuntimeError, OSError) as error:
        sys.exit(f"Error: {error}; put openseadragon.min.js to {VIEWER_PATH} yourself")


if __name__ == "__main__":
    main()
