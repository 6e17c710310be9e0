"""Options of a run: values checked when made, and which of them identify a map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_model import Small

from mclst.kernels.retriever import PROVIDERS
from mclst.runtime import InputError, RunOptions, open_bundle
from mclst.runtime.choices import RETRIEVERS
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.run.job import Job, identity


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"workers": 0},
        {"memory_budget": -1},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"max_bad_tiles": "some"},
        {"retrieval": {"neighbors": 5}},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values)).split("_")[0]):
        RunOptions(**values)


def test_retrievers_are_those_of_the_kernels() -> None:
    assert tuple(PROVIDERS) == RETRIEVERS


def test_the_identity_of_a_map_has_the_keys_that_reports_hold(small: Small, small_bundle: Any) -> None:
    """Maps of version 0.1.0 are recognized by these keys and JSON values."""
    model = LoadedModel(open_bundle(small_bundle))
    options = RunOptions(retrieval={"rank": "l2", "k": 5}, mpp=0.5)
    job = Job(small.slide, spots=small.spots, options=options)
    made_of = identity(model, job)
    assert {name: value for name, value in made_of.items() if name.startswith("--")} == {
        "--grid": "null",
        "--reader": '"auto"',
        "--mpp": "0.5",
        "--all-spots": "false",
        "--genes": "[]",
        "--max-bad-tiles": '"1%"',
        "--retrieval": '{"rank": "l2", "k": 5}',
        "--provider": '"auto"',
        "--precision": '"fp32"',
        "--retriever": '"auto"',
        "--batch-size": "16",
        "--memory-budget": "null",
    }
    assert set(made_of) - {name for name in made_of if name.startswith("--")} == {
        "the bundle", "the slide", "the table of spots", "the tissue mask",
    }  # fmt: skip
    same = replace(options, workers=9, overwrite=True, resume=False, picture=False, report=False, build=False)
    assert identity(model, replace(job, options=same)) == made_of
    assert identity(model, replace(job, options=replace(options, batch_size=8))) != made_of
