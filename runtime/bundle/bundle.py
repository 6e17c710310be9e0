"""The bundle on disk: opened only when every byte is the one that was exported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.atomic import WholeFolder
from mclst.runtime.bundle.bank import Bank, read_bank
from mclst.runtime.bundle.manifest import ENGINES, FORMAT, Manifest, read_manifest
from mclst.runtime.bundle.onnx_scan import check_graph
from mclst.runtime.errors import BundleError, OutputError
from mclst.runtime.hashing import Stamp, file_sha256, stamp

MANIFEST, ENCODER, BANK, PARITY = "manifest.json", "encoder.onnx", "bank.h5", "parity.json"
SEQUENCE, GENES = "sequence.onnx", "genes.txt"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""What a bundle's graphs may compute in; fp32 is always there."""
NEEDED = {
    "retrieval": (ENCODER, BANK),
    "regression": (ENCODER, GENES),
    "sequence": (ENCODER, SEQUENCE, GENES),
}
"""What a bundle of each kind is made of."""


def graph_name(graph: str, precision: str) -> str:
    """The file of `graph` (ENCODER or SEQUENCE) in a precision: `encoder.onnx` is fp32, `encoder.fp16.onnx` beside it."""
    return graph if precision == "fp32" else graph.replace(".onnx", f".{precision}.onnx")


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    path: Path
    manifest: Manifest
    sha256: str
    """Of manifest.json, which holds the hashes of all other files."""
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False, compare=False)
    """Of each file as it was when its hash was taken."""

    @property
    def server(self) -> str:
        """URL of the server that holds it; "" where its files are here."""
        return ""

    @property
    def encoder_gives(self) -> int:
        """Numbers per tile that a session gives."""
        return self.manifest.encoder.embedding_dim

    @property
    def encoder_path(self) -> Path:
        """The fp32 ONNX graph from tiles to embeddings, features or expression."""
        return self.encoder()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those the bundle has an encoder in, fp32 first."""
        return tuple(p for p in PRECISIONS if graph_name(ENCODER, p) in self.manifest.files)

    def encoder(self, precision: str = "fp32") -> Path:
        """The encoder's graph in a precision; raises BundleError, naming those there are, where it has none."""
        if precision not in self.precisions:
            raise BundleError(
                f"{self.server or self.path} has no encoder in {precision} but in {', '.join(self.precisions)}; choose one of these, "
                f"or export with --precision {precision}"
            )
        return self.path / graph_name(ENCODER, precision)

    def sequence(self, precision: str = "fp32") -> Path:
        """The graph from all of a slide's features to expression beside the encoder in a precision; fp32 beside int8."""
        name = graph_name(SEQUENCE, precision)
        return self.path / (name if name in self.manifest.files else SEQUENCE)

    @cached_property
    def genes(self) -> list[str]:
        """The G gene names, in the order of the expression; raises BundleError where they contradict the manifest."""
        if self.manifest.kind == "retrieval":
            return [str(gene) for gene in self.bank.genes]
        try:
            found = (self.path / GENES).read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{self.path / GENES} cannot be read ({error}); export the bundle again"
            ) from error
        if len(found) != self.manifest.genes or len(set(found)) != len(found):
            raise BundleError(
                f"{self.path / GENES} names {len(set(found))} genes and the manifest says {self.manifest.genes}; "
                "export the bundle again"
            )
        return found

    @cached_property
    def bank(self) -> Bank:
        """The bank, read on first use; raises BundleError where it contradicts the manifest."""
        bank = read_bank(self.path / BANK)
        said = (self.manifest.bank_rows, self.manifest.encoder.embedding_dim, self.manifest.genes)
        found = (*bank.embedding.shape, len(bank.genes))
        if said != found:
            raise BundleError(
                f"{self.path / BANK} is {found} (spots, dimensions, genes) and the manifest says {said}; "
                "export the bundle again"
            )
        return bank

    @property
    def retrieval(self) -> RetrievalSpec:
        """How expression is made from the bank; raises BundleError where the network gives it without one."""
        if self.manifest.retrieval is None:
            raise BundleError(
                f"{self.path} is a bundle of {self.manifest.system}, which gives expression without a bank; "
                "leave the retrieval options out"
            )
        return self.manifest.retrieval.spec()

    def check_unchanged(self) -> None:
        """Raise BundleError where a file is no longer the one that was verified; asked once all of them are read."""
        for name, seen in self.stamps.items():
            if stamp(self.path / name) != seen:
                raise BundleError(f"{self.path / name} changed while it was being read; run again")

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"Bundle({self.server or str(self.path)!r}: {m.system} with {m.encoder.name}, {m.tile.size_px} px tiles, "
            + (f"{m.bank_rows} reference spots, " if m.retrieval else "")
            + f"{m.genes} genes"
            + (f", k={m.retrieval.k})" if m.retrieval else ")")
        )

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import as_html

        m = self.manifest
        rows = [
            ("server" if self.server else "folder", self.server or self.path),
            ("system", f"{m.system}, {m.encoder.name}"),
            ("tile", f"{m.tile.size_px} px" + (f" of {m.tile.mpp:g} µm" if m.tile.mpp else " of level 0")),
            ("genes", m.genes),
            ("reference spots", m.bank_rows if m.retrieval else None),
            ("neighbours averaged", m.retrieval.k if m.retrieval else None),
            ("expression", m.normalisation.expression),
            ("SHA-256", self.sha256),
        ]
        return as_html("Bundle", rows)


def _verify(folder: Path, name: str, size: int, sha256: str) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BundleError(f"{folder / MANIFEST} names {name!r}, outside the bundle; export the bundle again")
    try:
        status = os.lstat(path)
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{path} is not a plain file; export the bundle again")
        if status.st_size != size or file_sha256(path) != sha256:
            raise BundleError(
                f"{path} is not the file that was exported (size or SHA-256 differ); export again"
            )
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); export the bundle again"
        ) from error


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify the size and SHA-256 of each of its files.

    Raises BundleError, naming the file, where the folder is no bundle, a file is missing or a byte has changed,
    a graph reads a file that is not among them, or the format is another version's.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle; make one with mclst-export --ckpt, or give --bundle")
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} has no {MANIFEST}, so it is not a whole bundle; export it again")
    manifest = read_manifest(folder / MANIFEST)
    for needed in NEEDED[manifest.kind]:
        if needed not in manifest.files:
            raise BundleError(f"{folder / MANIFEST} does not list {needed}; export the bundle again")
    stamps = {name: stamp(folder / name) for name in manifest.files}
    for name, record in manifest.files.items():
        _verify(folder, name, record.bytes, record.sha256)
    for name in (ENCODER, SEQUENCE):
        if name in manifest.files:
            check_graph(folder / name, manifest.files.keys())
    return Bundle(folder, manifest, file_sha256(folder / MANIFEST), stamps)


class BundleDraft(WholeFolder):
    """A bundle being written: files go into `part`; `seal` adds the manifest last and publishes the folder."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Raises OutputError where `path` is in the way and may not, or must not, be replaced."""
        super().__init__(path, mark=MANIFEST, overwrite=overwrite)

    def seal(self, **fields: Any) -> Bundle:
        """Hash what stands in the folder, write the manifest with `fields` (Manifest's, less format and files)."""
        try:
            files = {
                entry.relative_to(self.part).as_posix(): {
                    "bytes": entry.stat().st_size,
                    "sha256": file_sha256(entry),
                }
                for entry in sorted(self.part.rglob("*"))
                # Engines have manifests of their own: one that is spoilt is built again.
                if entry.is_file() and entry.relative_to(self.part).parts[0] != ENGINES
            }
            manifest = Manifest.model_validate_json(json.dumps({"format": FORMAT, **fields, "files": files}))
            with (self.part / MANIFEST).open("w", encoding="utf-8") as file:
                file.write(manifest.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror or error}); free space"
            ) from error
        self.publish()
        return Bundle(self.path, manifest, file_sha256(self.path / MANIFEST))
