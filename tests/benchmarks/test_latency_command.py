"""`mclst-bench latency` as a command: its document, its schema, and what it refuses."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result
from small_model import Small

from mclst.benchmarks.cli import main
from mclst.benchmarks.contenders import encoders, peak_memory
from mclst.benchmarks.contenders.base import ContenderInputs, Encoder
from mclst.benchmarks.encoder.chart import latency_png
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.benchmarks.roofline import peaks
from mclst.benchmarks.schemas import validate

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "measure_peaks", partial(peaks.measure_peaks, side=128, copy_bytes=1 << 20))


def bench(bundle: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["latency", "--bundle", str(bundle), *words])


def test_a_document_of_real_encoders(
    small: Small, exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(inputs: ContenderInputs, device: str = "cpu") -> Encoder:
        raise PeerUnavailable("compiling takes a minute")

    def measured(name: str, work: str, **arguments: Any) -> dict[str, Any]:
        return {"name": name, "before_bytes": 1 << 20, "peak_rss_bytes": 3 << 20, "why": ""}

    monkeypatch.setattr(encoders, "torch_compiled", too_slow)
    # Each takes a process; a test above runs one.
    monkeypatch.setattr(peak_memory, "measure_peak_memory", measured)
    saved, picture, spots = tmp_path / "l.json", tmp_path / "l.png", tmp_path / "spots.tsv"
    lines = small.spots.read_text().splitlines(keepends=True)
    spots.write_text("".join(lines[: 1 + 8]))
    done = bench(
        exported_bundle, "--ckpt", str(small.ckpt), "--slide", str(small.slide), "--spots", str(spots),
        "--batch-sizes", "1,4", "--repeats", "3", "--block", "0.05", "--settings", "cpu:fp32",
        "--predict", "orin", "--sustained", "0.01", "--json", str(saved), "--plot", str(picture),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(saved.read_text())
    jsonschema.validate(report, json.loads((SCHEMAS / "latency.json").read_text()))
    assert report["settings"]["tiles"] == "of B1.png" and report["settings"]["different_tiles"] == 8
    assert [of_batch["batch"] for of_batch in report["batches"]] == [1, 4]
    names = {result["name"] for result in report["batches"][0]["results"]}
    assert {"mclst cpu fp32", "ONNX Runtime fp32", "torch eager"} <= names
    assert {entry["name"] for entry in report["absent"]} >= {"torch eager cuda", "trtexec fp32"} - names
    work = {w["batch"]: w for w in report["work"]}
    for of_batch in report["batches"]:
        for result in of_batch["results"]:
            assert result["latency_s"]["percentiles"]["p50"]["s"] > 0
            if result["roofline_s"] is not None:
                assert result["of_roofline"] == pytest.approx(
                    result["roofline_s"] / result["latency_s"]["mean"]
                )
        assert work[of_batch["batch"]]["products"] == of_batch["batch"] * work[1]["products"]
    for name, near in report["agreement"]["contenders"].items():
        assert near["cosine_min"] > (0.999 if "bf16" in name else 0.999999), name
    assert report["agreement"]["reference"] == "checkpoint in torch, float32"
    assert (
        all(bound["kind"] == "bound" for bound in report["predictions"]) and len(report["predictions"]) == 8
    )
    assert "bound, not measured: Jetson AGX Orin" in done.stderr
    ran = {name.split()[1] for name in names if name.startswith("mclst ")}
    assert {run["provider"] for run in report["fresh"]} == ran >= {"cpu"}
    assert {entry["name"] for entry in report["memory"]} == names
    assert picture.read_bytes().startswith(b"\x89PNG") and len(latency_png(report)) > 20_000
    for word in (
        "least cosine",
        "offline",
        "sustained",
        "fresh process",
        "energy by",
        "2 of it its own",
        "not run here",
    ):
        assert word in done.stderr
    compared = CliRunner().invoke(main, ["compare", str(saved), str(saved)])
    assert compared.exit_code == 0 and "batch 4: torch eager" in compared.stderr


def test_made_up_tiles_and_no_peers(exported_bundle: Path) -> None:
    done = bench(
        exported_bundle, "--batch-sizes", "2", "--repeats", "1", "--block", "0.01", "--no-peers",
        "--no-fresh", "--no-offline", "--tiles", "4", "--threads", "2", "--lanes", "1,2", "--json", "-", "-q",
    )  # fmt: skip
    assert done.exit_code == 0 and done.stderr == "", done.output
    report = json.loads(done.stdout)
    jsonschema.validate(report, json.loads((SCHEMAS / "latency.json").read_text()))
    assert report["settings"]["tiles"] == "made up" and report["offline"] is None and report["fresh"] == []
    names = [result["name"] for result in report["batches"][0]["results"]]
    assert names == ["mclst cpu fp32", "mclst cpu fp32, 1 lane"], "two lanes are what there is by default"


def test_a_fresh_process_that_fails_loses_no_measurement(
    exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    done = bench(
        exported_bundle, "--batch-sizes", "2", "--repeats", "1", "--block", "0.01", "--no-peers",
        "--no-offline", "--tiles", "4", "--settings", "cpu:fp32", "--json", "-", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["fresh"] == [] and [batch["batch"] for batch in report["batches"]] == [2]
    (why,) = [one["why"] for one in report["absent"] if one["name"] == "mclst cpu fp32, fresh process"]
    assert "fresh process of cpu fp32 failed with status 1 (no message)" in why
    (memory,) = report["memory"]
    assert memory["peak_rss_bytes"] is None and "failed with status 1" in memory["why"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--settings", "cpu:int8"), 4, "has no encoder in int8"),
        (("--settings", "tpu:fp32"), 2, "no provider 'tpu'"),
        (("--settings", "cpu:fp4"), 2, "no precision 'fp4'; choose fp32, fp16, bf16, int8"),
        (("--batch-sizes", "0"), 2, "numbers from 1"),
        (("--slide", "x.svs"), 2, "belong together"),
        (("--predict", "tpu"), 2, "orin"),
        (("--sustained", "nan"), 2, "finite"),
        (("--ckpt", "no.pt"), 4, "no.pt"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    exported_bundle: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    done = bench(exported_bundle, *words)
    assert done.exit_code == code and says in " ".join(done.output.split()) and "Traceback" not in done.output


@pytest.mark.parametrize("name", validate.DOCUMENTS)
def test_the_published_schema_is_that_of_the_command(name: str) -> None:
    published = json.loads((SCHEMAS / f"{name}.json").read_text())
    assert published == validate.json_schema(name)
    jsonschema.Draft202012Validator.check_schema(published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": f"mclst-bench-{name}/1"}, published)
