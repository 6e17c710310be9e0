"""Damaged files, one after another, read in this process: `python fuzzing.py KIND SEED COUNT FOLDER`.

KIND: slide, openslide, bundle, manifest, graph, map, section or spots. FOLDER holds whole files of the kind.
Every damaged file must be read, or refused in one sentence; the one at work is FOLDER/current/…, so that it
is there when the process dies of it. A seed gives the same damage on every machine."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_hdf5

MEMORY_MB = 3000
SECONDS_A_FILE = 120
ODD = [0, 1, 2, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    2**63,
    2**70,
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    "../x",
    "\0",
    "1",
    0.5,
]


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut off, blanked, moved, doubled, or numbers in the first kilobytes made odd."""
    content = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 12))):
        reach = len(content) if chance.random() < 0.4 else min(len(content), 2500)
        if reach < 2:
            break
        at, size = chance.randrange(reach), chance.choice((1, 2, 4, 8, 64, 700))
        way = chance.randrange(9)
        if way < 3:
            content[at] ^= 1 << chance.randrange(8)
        elif way < 5:
            content[at : at + 4] = chance.choice(ODD).to_bytes(4, chance.choice(("little", "big")))
        elif way == 5:
            content[at : at + size] = bytes([chance.choice((0, 255))]) * size
        elif way == 6:
            source = chance.randrange(len(content))
            content[at : at + size] = content[source : source + size]
        elif way == 7:
            del content[at : at + size]
        else:
            del content[chance.randrange(len(content)) :]
    return bytes(content)


def damaged_json(whole: bytes, chance: random.Random) -> bytes:
    """A value somewhere in it replaced, a key dropped or doubled; or its bytes damaged."""
    if chance.random() < 0.3:
        return damaged(whole, chance)
    content = json.loads(whole)
    for _ in range(chance.choice((1, 1, 2))):
        at: Any = content
        while at:
            key = chance.choice(list(at) if isinstance(at, dict) else list(range(len(at))))
            if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.7:
                at = at[key]
                continue
            if chance.random() < 0.2 and isinstance(at, dict):
                del at[key]
            else:
                at[key] = json.loads(json.dumps(chance.choice(ODD_VALUES)))
            break
    return json.dumps(content).encode()


def read_slide(path: Path) -> None:
    from mclst.runtime.slide.open import open_slide

    with open_slide(path) as slide:
        slide.thumbnail(100)
        for level in range(len(slide.levels)):
            slide.read(-10, 30, 90, 70, level=level)


def read_a_bundle(path: Path) -> None:
    from mclst.runtime.bundle.bundle import open_bundle

    _ = open_bundle(path.parent).bank


def read_a_manifest(path: Path) -> None:
    from mclst.runtime.bundle.manifest import read_manifest

    read_manifest(path)


def read_a_graph(path: Path) -> None:
    from mclst.runtime.bundle.onnx_scan import check_graph

    check_graph(path, {path.name, f"{path.name}.data"})


def read_a_map(path: Path) -> None:
    from mclst.runtime.expression_map.reader import open_map

    with open_map(path) as expression_map:
        assert len(expression_map.spots) == len(expression_map.xy_px)


def read_a_section(path: Path) -> None:
    from mclst.sections import find_sections, read_section

    (source,) = find_sections(path).values()
    read_section(source)


def read_a_spot_table(path: Path) -> None:
    from mclst.sections.tables.spots import read_spots

    read_spots(path)


HDF5 = {"map": read_a_map, "section": read_a_section, "spots": read_a_spot_table}
READ: dict[str, Callable[[Path], None]] = {
    "slide": read_slide,
    "openslide": read_slide,
    "bundle": read_a_bundle,
    "manifest": read_a_manifest,
    "graph": read_a_graph,
    **HDF5,
}


def opened_of(source: Path) -> Path:
    """The file to open of a slide that is several."""
    if source.is_file():
        return source
    return next(path for path in sorted(source.rglob("*")) if path.suffix in (".mrxs", ".dcm", ".json"))


def one(kind: str, source: Path, folder: Path, chance: random.Random) -> bool:
    """Damage one file of `folder`, or one that belongs to it, and read it; return whether it was readable."""
    from mclst.runtime.errors import MclstError
    from mclst.sections import SectionError

    shutil.rmtree(folder / "current", ignore_errors=True)
    if source.is_dir():
        current = Path(shutil.copytree(source, folder / "current"))
        opened = opened_of(current)
        victim = chance.choice([path for path in sorted(current.rglob("*")) if path.is_file()])
    else:
        (folder / "current").mkdir()
        opened = victim = folder / "current" / source.name
    whole = (victim if source.is_dir() else source).read_bytes()
    leads_out = False
    if kind in HDF5:  # objects, not bytes: HDF5 2.0 may never return from a damaged heap of texts
        victim.write_bytes(whole)
        leads_out = hostile_hdf5.damage(victim, source, chance)
    else:
        victim.write_bytes(damaged_json(whole, chance) if kind == "manifest" else damaged(whole, chance))
    try:
        READ[kind](opened)
    except (MclstError, SectionError) as error:
        text = str(error)
        place = opened.parent.name if kind == "bundle" else opened.name
        assert "\n" not in text and 20 < len(text) < 2000 and place in text, f"no sentence: {text!r}"
        return False
    except MemoryError:
        raise AssertionError(f"asked for more than {MEMORY_MB} MB") from None
    assert not leads_out, "read what leads out of the file"
    return True


def main(kind: str, seed: int, count: int, folder: Path) -> int:
    """Return 0 if every file was read or refused; else print the number of the first that was neither."""
    sources = [path for path in sorted(folder.iterdir()) if path.name != "current"]
    for source in sources:
        READ[kind](opened_of(source))
    limit = (MEMORY_MB << 20) + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    readable = 0
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        # A read that takes this much CPU time ends the process.
        signal.setitimer(signal.ITIMER_PROF, SECONDS_A_FILE)
        try:
            readable += one(kind, chance.choice(sources), folder, chance)
        except Exception:  # noqa: BLE001 - whatever passes is what is looked for
            print(f"\nfile {number} of seed {seed}:", file=sys.stderr)
            traceback.print_exc()
            return 1
    print(json.dumps({"files": count, "readable": readable}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
