"""Hardware counters of every retrieval kernel by NVIDIA's Nsight Compute (ncu); for `make gpu-check`.

Writes a document per case: the last launch of each kernel, by section and metric. Clocks are left alone.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mclst.benchmarks.gpu_check.device import find_program

CASES = ("her2st-l1", "visium-k2400")
QUERIES = 8192
SECTIONS = (
    *("SpeedOfLight", "LaunchStats", "Occupancy", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis"),
    *("SchedulerStats", "WarpStateStats", "InstructionStats"),
)
LAUNCHES = 10
"""The bank and its sample are placed, then a block of queries goes through eight kernels."""
Counters = dict[str, dict[str, str | float]]


def read_counters(lines: Iterable[str]) -> Counters:
    """By kernel "section: metric [unit]" → value, of its last launch; from the pages "details" of ncu's CSV.

    Lines before the head of the table are ncu's own messages. Numbers become floats.
    """
    rows = iter(lines)
    head = next((line for line in rows if line.startswith('"ID"')), None)
    if head is None:
        return {}
    counters: Counters = {}
    launch: dict[str, str] = {}
    for row in csv.DictReader(rows, fieldnames=next(csv.reader([head]))):
        name = (row.get("Kernel Name") or "").split("(")[0]
        metric = row.get("Metric Name")
        if not name or not metric:
            continue
        if launch.get(name) != row["ID"]:
            launch[name] = row["ID"]
            counters[name] = {"grid": row["Grid Size"], "block": row["Block Size"]}
        unit = f" [{row['Metric Unit']}]" if row["Metric Unit"] else ""
        counters[name][f"{row['Section Name']}: {metric}{unit}"] = _value(row["Metric Value"])
    return counters


def _value(text: str) -> str | float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def profile(ncu: str, case: str, folder: Path) -> Counters:
    """Run one block of queries of `case` under ncu. Raises RuntimeError if that measures nothing."""
    log = folder / f"{case}.csv"
    command = [ncu, "--clock-control", "none", "--csv", "--page", "details", "--print-units", "base"]
    command += ["--launch-count", str(LAUNCHES), "--log-file", str(log)]
    command += [word for section in SECTIONS for word in ("--section", section)]
    here = [sys.executable, "-m", "mclst.benchmarks.gpu_check.counters", "--run", case]
    done = subprocess.run([*command, *here], check=False)
    text = log.read_text(errors="replace") if log.is_file() else ""
    counters = read_counters(text.splitlines())
    if not counters:
        said = " ".join(line for line in text.splitlines() if line.startswith("==ERROR=="))
        raise RuntimeError(f"ncu measured no kernel (exit status {done.returncode}) {said}".strip())
    return counters


def _run(case: str) -> None:
    """One block of queries."""
    from mclst.benchmarks.retrieval.cases import CASES as SHAPES
    from mclst.benchmarks.retrieval.synthetic import Source
    from mclst.kernels.cuda.provider import CudaProvider

    source = Source("contrastive", SHAPES[case])
    bank, queries = source.bank(), source.queries(QUERIES)
    cuda = CudaProvider(bank.embedding, bank.expression, SHAPES[case].spec)
    cuda.aggregate(queries)
    cuda.release()


def main() -> None:
    """Measure all cases into the folder of the command line."""
    if sys.argv[1] == "--run":
        _run(sys.argv[2])
        return
    ncu = find_program("ncu")
    if ncu is None:
        sys.exit("ncu is not installed; it comes with the CUDA toolkit")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for case in CASES:
        try:
            counters = profile(ncu, case, folder)
        except RuntimeError as error:  # the other case may well run
            print(f"{case}: {error}", flush=True)
            failed.append(case)
            continue
        (folder / f"{case}.json").write_text(json.dumps(counters, indent=1) + "\n")
        print(f"{case}: {', '.join(counters)}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
