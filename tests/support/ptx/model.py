"""`PYTHONPATH=tests/support python -m ptx.model` prints a model of retrieval's time by stage, no measurement.

Instructions are those that the PTX executor counts (count.py), scaled to two published cases; bytes follow
from the shapes. A stage takes at least the time of its busiest unit. Latencies, conflicts, tails and launches
are left out. `issue` counts every PTX instruction: machine code has fewer in loops, and more in divisions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scipy.stats import hypergeom

from mclst.kernels.cuda.device_bank import padded_columns
from mclst.kernels.cuda.plan import Plan, make_plan
from ptx.count import COLUMNS, GENES, QUERIES, ROWS, SAMPLE, counted, planned, unit_of


@dataclass(frozen=True)
class Case:
    """Queries against a bank: rows and genes of it, and k. counted: k of the case that was executed."""

    name: str
    rows: int
    k: int
    genes: int
    counted: int


CASES = (Case("HER2+, k = 200", 11_372, 200, 785, 36), Case("Visium, k = 2,400", 24_787, 2_400, 685, 198))

# H100 SXM: multiprocessors, clock; a clock's warp instructions of each unit (CUDA C++ Programming Guide,
# table of arithmetic throughput, 9.0). Tensor cores: 62 % of their peak, which mma.sync reaches. Shared
# memory: 128 bytes a clock.
MULTIPROCESSORS, CLOCK = 132, 1.755e9
PER_CLOCK = {"tensor": 0.62, "float32": 4, "float64": 2, "convert": 0.5, "shared": 1, "issue": 4}
L2_BYTES, PCIE_BYTES = 5.5e12, 50e9


def wavefronts(opcode: str) -> int:
    """Clocks of shared memory for a warp: 128 bytes each, where banks do not conflict."""
    if opcode.startswith("ldmatrix"):
        return 4
    words = 4 if ".v4" in opcode else 2 if ".v2" in opcode else 1
    return words * (2 if opcode.endswith("64") else 1)


def clocks(spent: Counter[str]) -> dict[str, float]:
    """Clocks of a multiprocessor by unit, for a query."""
    units: Counter[str] = Counter()
    for opcode, times in spent.items():
        unit = unit_of(opcode)
        units["issue"] += times
        if unit == "shared":
            units[unit] += times * wavefronts(opcode)
        elif unit in PER_CLOCK:
            units[unit] += times
    return {unit: count / QUERIES / PER_CLOCK[unit] for unit, count in units.items()}


def listed(case: Case, plan: Plan) -> float:
    """Share of queries whose limit is too low: `sample_rank` or more of their k nearest are in the sample."""
    return float(hypergeom.sf(plan.sample_rank - 1, case.rows, case.k, plan.sample))


def exactly(case: Case, plan: Plan, spent: Counter[str]) -> float:
    """Nanoseconds a query that a block of queries waits for `choose_exactly`.

    A query that gets there has one multiprocessor, and while it is scored the others have nothing to do.
    """
    units = {unit: count * QUERIES for unit, count in clocks(spent).items()}
    alone = 1e9 / CLOCK * max(units.values()) * case.rows / ROWS
    return alone * (1 - (1 - listed(case, plan)) ** plan.queries) / plan.queries


def stages(case: Case) -> dict[str, dict[str, float]]:
    """Nanoseconds a query by stage and unit."""
    padded = padded_columns(COLUMNS)
    plan = make_plan(case.rows, padded, case.k, case.genes, multiprocessors=MULTIPROCESSORS)
    slabs = -(-case.genes // GENES)
    scale = {
        "place": 1.0,
        "product_all": plan.sample / SAMPLE,
        "set_limit": plan.sample / SAMPLE,
        "product_within": case.rows / ROWS,
        "choose": plan.capacity / planned(case.counted).capacity,
        "weigh": case.k / case.counted,
        "gather": slabs * case.k / case.counted,
        "multiply_dense": slabs * case.rows / ROWS,
    }
    # A tile of 128 queries reads all points; a tile of 64, all genes; other stages, what they sum.
    l2 = {
        "product_all": 2 * 4 * padded * plan.sample / 128,
        "product_within": 2 * 4 * padded * case.rows / 128,
        "set_limit": 4 * plan.sample,
        "choose": 8 * plan.capacity,
        "weigh": 4 * COLUMNS * case.k,
        "gather": 4 * case.genes * case.k,
        "multiply_dense": slabs * GENES * 4 * case.rows / 64,
    }
    clock_ns = 1e9 / CLOCK / MULTIPROCESSORS
    times = {}
    for kernel, spent in counted(case.counted).items():
        if kernel == "choose_exactly":
            times[kernel] = {"one multiprocessor": exactly(case, plan, spent)}
        elif kernel in scale:
            times[kernel] = {unit: n * scale[kernel] * clock_ns for unit, n in clocks(spent).items()}
            times[kernel]["L2"] = 1e9 * l2.get(kernel, 0.0) / L2_BYTES
    times["copy up"] = {"PCIe": 1e9 * 4 * COLUMNS / PCIE_BYTES}
    times["copy down"] = {"PCIe": 1e9 * 4 * case.genes / PCIE_BYTES}
    return times


def main() -> None:
    for case in CASES:
        print(f"{case.name}: a model of nanoseconds a query")
        kernels = 0.0
        for stage, units in stages(case).items():
            issue = units.pop("issue", 0.0)
            busiest, least = max(units.items(), key=lambda unit: unit[1])
            kernels += least if busiest != "PCIe" else 0.0
            print(f"  {stage}: {least:.1f} by {busiest}; issue {issue:.1f}")
        print(f"  kernels: {kernels:.1f}")


if __name__ == "__main__":
    main()
