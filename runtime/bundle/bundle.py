"""Open, verify and write bundles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.bundle.bank import Bank, read_bank, read_gene_names
from mclst.runtime.bundle.calibration import check_record, read_calibration
from mclst.runtime.bundle.location import cached_snapshot, links_into_cache
from mclst.runtime.bundle.manifest import (
    CALIBRATION,
    ENGINES,
    FORMAT,
    Manifest,
    describe_unusable,
    read_manifest,
)
from mclst.runtime.bundle.onnx_scan import check_graph, graph_sha256
from mclst.runtime.choices import PRECISIONS
from mclst.runtime.errors import BundleError, write_error
from mclst.runtime.hashing import Stamp, file_sha256, stamp
from mclst.runtime.trust.calibration import Calibration

MANIFEST, ENCODER, BANK, PARITY = "manifest.json", "encoder.onnx", "bank.h5", "parity.json"
SLIDE_GRAPH, GENES = "slide.onnx", "genes.txt"
FORMER_NAMES = {SLIDE_GRAPH: "sequence.onnx"}
"""Names that bundles of format 1 have for a file."""
GENE_TABLE = "genes.tsv"
GRAPH_SUFFIXES = (".onnx", ".onnx.data")
PARITY_TILES, PARITY_OUTPUT = "parity_tiles.npy", "parity_output.npy"
"""Tiles of the parity proof and what the checkpoint gives for them, where the export keeps some."""
REQUIRED_FILES = {
    "retrieval": (ENCODER, BANK),
    "regression": (ENCODER, GENES),
    "slide": (ENCODER, SLIDE_GRAPH, GENES),
}
"""Files of a bundle, by kind."""


def graph_name(graph: str, precision: str) -> str:
    """File of `graph` (ENCODER or SLIDE_GRAPH): `encoder.onnx` for fp32, else such as `encoder.fp16.onnx`."""
    return graph if precision == "fp32" else graph.replace(".onnx", f".{precision}.onnx")


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle; get one from `open_bundle`.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : Manifest
    sha256 : str
        Of manifest.json, which holds the hashes of all other files.
    stamps : mapping of str to Stamp
        Of each file when it was verified.
    unverified : set of str
        Graphs and weights to verify when they are asked for; see `open_bundle`.
    genes : list of str [G]
        In the order of the expression.
    bank : Bank
        Read on first use.
    """

    path: Path
    manifest: Manifest
    sha256: str
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False, compare=False)
    unverified: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def encoder_path(self) -> Path:
        """The fp32 ONNX graph from tiles to embeddings, features or expression."""
        return self.encoder()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of the bundle's encoders, fp32 first."""
        return tuple(p for p in PRECISIONS if graph_name(ENCODER, p) in self.manifest.files)

    def encoder(self, precision: str = "fp32") -> Path:
        """The encoder's graph in a precision; raises BundleError if the bundle has none, or it is damaged."""
        self.check_precision(precision)
        return self._graph(graph_name(ENCODER, precision))

    def check_precision(self, precision: str) -> None:
        """Raise BundleError if the bundle has no encoder in a precision."""
        if precision not in self.precisions:
            raise BundleError(
                f"{self.path} has no encoder in {precision} but in "
                f"{', '.join(self.precisions)}; choose one of these, or export with --precision {precision}"
            )

    def _graph(self, name: str) -> Path:
        """A graph's file, verified with its weights."""
        for each in (f"{name}.data", name):
            if each in self.unverified:
                _verify(self.path, each, self.manifest)
                self.unverified.discard(each)
        return self.path / name

    def encoder_sha256(self, precision: str) -> str:
        """SHA-256 of what the encoder computes in a precision, whatever the bundle says beside it.

        Bundles of the same network have the same, with other banks, licenses or lists of genes.
        """
        path = self.encoder(precision)
        weights = self.manifest.files.get(f"{path.name}.data")
        return graph_sha256(path) + ("" if weights is None else f" {weights.sha256}")

    def slide_graph(self, precision: str = "fp32") -> Path:
        """The graph from all of a slide's features to expression; falls back to fp32, as for int8."""
        fp32 = SLIDE_GRAPH if SLIDE_GRAPH in self.manifest.files else FORMER_NAMES[SLIDE_GRAPH]
        name = graph_name(fp32, precision)
        return self._graph(name if name in self.manifest.files else fp32)

    @cached_property
    def genes(self) -> list[str]:
        """Gene names in the order of the expression; BundleError if they contradict the manifest."""
        if self.manifest.kind == "retrieval":
            # The bank itself, which is large, is needed later.
            genes = [str(gene) for gene in read_gene_names(self.path / BANK)]
            if len(genes) != self.manifest.genes or len(set(genes)) != len(genes):
                self.bank  # noqa: B018 - which says what is wrong
            return genes
        try:
            genes = (self.path / GENES).read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{self.path / GENES} cannot be read ({error}); export the bundle again"
            ) from error
        if len(genes) != self.manifest.genes or len(set(genes)) != len(genes):
            raise BundleError(
                f"{self.path / GENES} names {len(set(genes))} genes and the manifest says "
                f"{self.manifest.genes}; export the bundle again"
            )
        return self._usable(genes, GENES)

    @cached_property
    def gene_ids(self) -> list[str] | None:
        """Ensembl id of each gene, "" where it is not known; None if the bundle holds none.

        Raises BundleError if the table does not name the bundle's genes.
        """
        if GENE_TABLE not in self.manifest.files:
            return None
        path = self.path / GENE_TABLE
        try:
            rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:-1]]
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
        if [row[0] for row in rows] != self.genes or any(len(row) != 2 for row in rows):
            raise BundleError(
                f"{path} does not name the bundle's genes in their order, each with one id; export the "
                "bundle again"
            )
        return self._usable([row[1] for row in rows], GENE_TABLE)

    def _usable(self, names: list[str], file: str) -> list[str]:
        if unusable := describe_unusable(names):
            raise BundleError(f"{self.path / file} holds {unusable}; export the bundle again")
        return names

    @cached_property
    def bank(self) -> Bank:
        """The bank, read on first use; raises BundleError if it contradicts the manifest."""
        bank = read_bank(self.path / BANK)
        declared = (self.manifest.bank_rows, self.manifest.encoder.embedding_dim, self.manifest.genes)
        actual = (*bank.embedding.shape, len(bank.genes))
        if actual != declared:
            raise BundleError(
                f"{self.path / BANK} is {actual} (spots, dimensions, genes) and the manifest says "
                f"{declared}; export the bundle again"
            )
        return bank

    @cached_property
    def calibration(self) -> Calibration | None:
        """What held-out sections showed, read on first use; None if the bundle is not calibrated.

        Raises BundleError if it contradicts the manifest.
        """
        if self.manifest.calibration is None:
            return None
        path, dim = self.path / CALIBRATION, self.manifest.encoder.embedding_dim
        calibration = read_calibration(path, genes=self.manifest.genes, dim=dim)
        return check_record(calibration, self.manifest, path)

    @property
    def retrieval(self) -> RetrievalSpec:
        """Retrieval settings; raises BundleError if the network predicts expression without a bank."""
        if self.manifest.retrieval is None:
            raise BundleError(
                f"{self.path} is a bundle of {self.manifest.system}, which gives expression without a bank; "
                "leave the retrieval options out"
            )
        return self.manifest.retrieval.spec()

    def pearson_kept(self, precision: str) -> float | None:
        """Mean Pearson r per gene between the expression in a precision and the checkpoint's, as exported.

        None for fp32 and where the export recorded none.
        """
        if PARITY not in self.manifest.files:
            return None
        try:
            parity = json.loads((self.path / PARITY).read_bytes())
            r = parity["precisions"][precision]["expression"]["pearson_per_gene_mean"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return float(r) if isinstance(r, float | int) else None

    def check_unchanged(self) -> None:
        """Raise BundleError if a file changed since it was verified; call it after all of them are read."""
        for name, verified in self.stamps.items():
            if stamp(self.path / name) != verified:
                raise BundleError(f"{self.path / name} changed while it was being read; run again")

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"Bundle({str(self.path)!r}: {m.system} with {m.encoder.name}, {m.tile.size_px} px tiles, "
            + (f"{m.bank_rows} reference spots, " if m.retrieval else "")
            + f"{m.genes} genes"
            + (f", k={m.retrieval.k})" if m.retrieval else ")")
        )

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import html_table

        m = self.manifest
        rows = [
            ("folder", self.path),
            ("system", f"{m.system}, {m.encoder.name}"),
            ("tile", f"{m.tile.size_px} px" + (f" of {m.tile.mpp:g} µm" if m.tile.mpp else " of level 0")),
            ("genes", m.genes),
            ("reference spots", m.bank_rows if m.retrieval else None),
            ("neighbors averaged", m.retrieval.k if m.retrieval else None),
            ("expression", m.normalization.expression),
            ("SHA-256", self.sha256),
        ]
        return html_table("Bundle", rows)


def _verify(folder: Path, name: str, manifest: Manifest) -> None:
    path, record = folder / name, manifest.files[name]
    origin = cached_snapshot(folder)
    cure = "export again" if origin is None else f"remove it from the cache, and get {origin} again"
    try:
        status = os.stat(path)
        if not path.is_file() or (path.is_symlink() and not links_into_cache(folder, path)):
            raise BundleError(f"{path} is not a plain file; export the bundle again")
        if status.st_size != record.bytes or file_sha256(path) != record.sha256:
            raise BundleError(f"{path} is not the file that was exported (size or SHA-256 differ); {cure}")
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); export the bundle again"
        ) from error
    if name.endswith(".onnx"):
        check_graph(path, manifest.files.keys())


def unverified_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest alone, to tell what it will need; raises BundleError if it is damaged."""
    try:
        return Bundle(folder, read_manifest(folder / MANIFEST), file_sha256(folder / MANIFEST))
    except OSError as error:
        raise BundleError(f"{folder} has no readable {MANIFEST} ({error.strerror or error})") from error


def open_bundle(path: str | Path, *, verify_graphs: bool = True) -> Bundle:
    """Open a bundle and verify the size and SHA-256 of each of its files.

    Parameters
    ----------
    path : str or Path
        A folder made by mclst-export.
    verify_graphs : bool
        Verify all graphs now. False: each when it is first asked for, since a run reads one of several.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        If the folder is no bundle or of another format version, a file is missing or changed, or a graph
        reads files outside the bundle. Names the file.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # Path.is_dir raises where the name is too long or a folder is closed
        raise BundleError(f"{folder} is not a bundle; make one with mclst-export --ckpt, or give --bundle")
    if not os.path.isfile(folder / MANIFEST):
        raise BundleError(f"{folder} has no {MANIFEST}, so it is not a whole bundle; export it again")
    manifest = read_manifest(folder / MANIFEST)
    for name in REQUIRED_FILES[manifest.kind]:
        if not {name, FORMER_NAMES.get(name, name)} & manifest.files.keys():
            raise BundleError(f"{folder / MANIFEST} does not list {name}; export the bundle again")
    # Stamped before hashing: a file that changes in between then fails `check_unchanged`.
    stamps = {name: stamp(folder / name) for name in manifest.files}
    later = set() if verify_graphs else {name for name in manifest.files if name.endswith(GRAPH_SUFFIXES)}
    for name in manifest.files:
        if name not in later:
            _verify(folder, name, manifest)
    return Bundle(folder, manifest, file_sha256(folder / MANIFEST), stamps, later)


class BundleDraft(AtomicFolder):
    """A bundle being written: fill the folder `part`, then `seal` it."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Raises OutputError if `path` exists and may not be replaced."""
        super().__init__(path, mark=MANIFEST, overwrite=overwrite)

    def seal(self, **fields: Any) -> Bundle:
        """Write the manifest with `fields` (Manifest's, except format and files) and publish the folder."""
        try:
            files = {
                entry.relative_to(self.part).as_posix(): {
                    "bytes": entry.stat().st_size,
                    "sha256": file_sha256(entry),
                }
                for entry in sorted(self.part.rglob("*"))
                # Engines have their own manifests: a damaged engine is rebuilt.
                if entry.is_file() and entry.relative_to(self.part).parts[0] != ENGINES
            }
            manifest = Manifest.model_validate_json(json.dumps({"format": FORMAT, **fields, "files": files}))
            with (self.part / MANIFEST).open("w", encoding="utf-8") as file:
                file.write(manifest.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error
        self.publish()
        return Bundle(self.path, manifest, file_sha256(self.path / MANIFEST))
