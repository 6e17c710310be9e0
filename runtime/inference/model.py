"""What a run computes with: the interface shared by a bundle opened here and one behind a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.manifest import Manifest
from mclst.runtime.encoder.session import Session
from mclst.runtime.inference.head import LinearHead
from mclst.runtime.inference.memory_budget import Fit
from mclst.runtime.inference.readout import Readout
from mclst.runtime.progress import Notify
from mclst.runtime.providers.candidates import ChoiceRequest
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.providers.timings import Candidate
from mclst.runtime.trust.calibration import Calibration

if TYPE_CHECKING:
    from mclst.sections.section import Spots


@dataclass(frozen=True)
class EncoderSettings:
    """Encoder settings that a model dictates."""

    provider: str
    precision: str
    batch_size: int


class Model(Protocol):
    """An encoder and the step after it, opened on demand and reused from one run to the next.

    Attributes
    ----------
    manifest : Manifest
        The bundle's.
    sha256 : str
        Of the manifest.
    folder : Path, optional
        The bundle's; None if its files are elsewhere.
    server : str
        URL of the server; "" if the bundle is opened here.
    output_dim : int
        Values per tile that the session returns.
    precisions : tuple of str
        Precisions that there are.
    encoder_settings : EncoderSettings, optional
        Settings that runs must use; None if they may choose.
    """

    manifest: Manifest
    sha256: str
    folder: Path | None
    server: str
    output_dim: int
    precisions: tuple[str, ...]
    encoder_settings: EncoderSettings | None

    @property
    def genes(self) -> list[str]:
        """The G gene names, in the order of the expression."""

    @property
    def gene_ids(self) -> list[str] | None:
        """Ensembl id of each gene, "" where there is none; None if they are not known here."""

    @property
    def calibration(self) -> Calibration | None:
        """What held-out sections showed of the model; None if it is not calibrated or not known here."""

    def server_record(self) -> dict[str, Any] | None:
        """Return what a map records about the server; None if there is none."""

    def prepare(
        self, provider: str, precision: str, batch_size: int, *, retriever: str, retrieval: Mapping[str, Any]
    ) -> None:
        """Begin to open, beside the caller's work, the encoder and readout that are likely to be asked for.

        retrieval: fields of RetrievalSpec that override the bundle's.
        """

    def wait(self) -> None:
        """Wait until what `prepare` began has ended; a process must not end before."""

    def choose_encoder(
        self, request: ChoiceRequest, notify: Notify, *, run_tiles: int | None = None
    ) -> EncoderChoice:
        """Choose where "auto" leaves it open, for the model's threads; see `mclst.runtime.providers.choice`.

        Raises BundleError if there is no encoder in `precision`.
        """

    def pearson_kept(self, precision: str) -> float | None:
        """Return the mean Pearson r per gene between the expression in a precision and the checkpoint's."""

    def check_unchanged(self) -> None:
        """Raise BundleError if a file has changed since it was verified."""

    def encoder(
        self, name: Candidate, batch_size: int, *, build: bool, notify: Notify
    ) -> tuple[Session, str]:
        """Return the encoder's session, and why "auto" skipped faster providers; name: of a choice."""

    def head(self, session: Session, precision: str) -> LinearHead | None:
        """Return what turns the session's features into the graph's values; None if it gives these itself."""

    def encoder_sha256(self, session: Session, precision: str) -> str | None:
        """SHA-256 of what the session's encoder computes; None if its values are not to be kept."""

    def readout(
        self,
        spec: RetrievalSpec | None,
        spots: Spots,
        provider: str,
        retriever: str,
        precision: str,
        *,
        fp16: bool,
    ) -> Readout:
        """Return the step after the encoder, which runs on `provider`; fp16: precision of the bank."""

    def measure_free_memory(self) -> None:
        """Record the GPU's free memory; call it before anything is opened."""

    def fit(self, session: Session, readout: Readout, budget: int, max_batch: int) -> Fit:
        """Return the batch and ring that fit into `budget` bytes."""


def describe_location(model: Model) -> str:
    """Return the server's URL or the bundle's folder, for messages."""
    return model.server or str(model.folder)
