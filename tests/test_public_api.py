"""The public names, and that each one's docstring describes every parameter."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest

PUBLIC = {
    "mclst.runtime": [
        "Bundle",
        "Files",
        "InputError",
        "MclstError",
        "OutputError",
        "ResourceError",
        "Run",
        "RunOptions",
        "Slide",
        "open_bundle",
        "open_slide",
        "predict",
    ],
    "mclst.runtime.bundle": ["Bundle", "open_bundle"],
    "mclst.runtime.slide": ["Slide", "open_slide"],
    "mclst.kernels": ["ProviderError", "RetrievalResult", "RetrievalSpec", "Retriever"],
    "mclst.sections": [
        "Columns",
        "NORMALIZATIONS",
        "NORMALIZATION_NAMES",
        "Section",
        "SectionError",
        "SectionSource",
        "SectionTotals",
        "Spots",
        "choose_sections",
        "find_sections",
        "gene_wise",
        "log_share",
        "match_genes",
        "median_log1p",
        "normalize",
        "read_gene_list",
        "read_section",
        "read_spots",
        "spot_wise",
    ],
}
OBJECTS = {
    f"{package}.{name}": getattr(importlib.import_module(package), name)
    for package, names in PUBLIC.items()
    for name in names
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_these_names(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PUBLIC[package] == sorted(dir(module))


def parameters_of(thing: Any) -> set[str]:
    signature = inspect.signature(thing)
    return {name for name, parameter in signature.parameters.items() if not name.startswith("_")}


@pytest.mark.parametrize(
    "name", [name for name, thing in OBJECTS.items() if inspect.isroutine(thing) or inspect.isclass(thing)]
)
def test_docstrings_describe_every_parameter(name: str) -> None:
    thing = OBJECTS[name]
    text = inspect.getdoc(thing)
    assert text
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    described = set(re.findall(r"^(\w+(?:, \w+)*) ?:", text, re.MULTILINE))
    described = {word for group in described for word in group.split(", ")}
    assert parameters_of(thing) <= described
