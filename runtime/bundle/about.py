"""`about` of a manifest: what a stranger must know of a bundle. What is not known is null."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mclst.runtime.bundle.strict_model import StrictModel

Text = Annotated[str, Field(min_length=1, max_length=4000)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]


class License(StrictModel):
    """Terms of use. name: an SPDX identifier, or the terms' own name. url: their text."""

    name: Text
    url: Text | None = None


class BaseModelRecord(StrictModel):
    """The published network that the bundle's own starts from.

    name: of the network. hub: its repository at the Hugging Face hub. revision: commit there. sha256: of its
    weights. license: its terms. redistributable: whether these let the bundle be published. relation: as the
    hub says it.
    """

    name: Text
    hub: HubId | None = None
    revision: Text | None = None
    sha256: Sha256 | None = None
    license: License | None = None
    redistributable: bool | None = None
    relation: Literal["finetune", "adapter", "quantized", "merge"] = "finetune"


class TrainingData(StrictModel):
    """What the network learned from. source: name or address. mpp: µm/px. sections, patients: how many."""

    source: Text | None = None
    organ: Text | None = None
    species: Text | None = None
    platform: Text | None = None
    stain: Text | None = None
    scanner: Text | None = None
    mpp: float | None = Field(default=None, gt=0.01, lt=100)
    sections: int | None = Field(default=None, ge=1)
    patients: int | None = Field(default=None, ge=1)


class Metric(StrictModel):
    """A measured figure. name: such as "mean Pearson r per gene". id: of the hub's list, such as pearsonr."""

    name: Text
    value: float
    id: Text | None = None


class Evaluation(StrictModel):
    """How good it is. protocol: on what, and what was held out. url, sha256: of the full result."""

    protocol: Text
    metrics: tuple[Metric, ...] = ()
    url: Text | None = None
    sha256: Sha256 | None = None


class Head(StrictModel):
    """What was fitted on the features of a frozen encoder. name: such as ridge. settings: of it, in words."""

    name: Text
    settings: Text | None = None


class About(StrictModel):
    """Description of a bundle.

    citation: publications or DOIs. gene_unit: unit of the expression, if its normalization does not say it.
    recipe: how the encoder is built and fed, by name. head: None where a system was trained whole.
    """

    title: Text | None = None
    license: License | None = None
    base_model: BaseModelRecord | None = None
    citation: tuple[Text, ...] = ()
    intended_use: Text | None = None
    out_of_scope: Text | None = None
    training_data: TrainingData | None = None
    evaluation: Evaluation | None = None
    gene_unit: Text | None = None
    recipe: Text | None = None
    head: Head | None = None
