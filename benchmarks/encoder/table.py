"""A document of `mclst-bench latency` for people."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.harness.tables import show_memory, show_table, stamp
from mclst.runtime.console import say


def show_latency(content: dict[str, Any]) -> None:
    """Print a document of `mclst-bench latency` for people."""
    say(stamp(content))
    agreement = content["agreement"]["contenders"]
    for of_batch in content["batches"]:
        rows = []
        for result in sorted(of_batch["results"], key=lambda result: float(result["latency_s"]["mean"])):
            told = result["latency_s"]
            share, near = result["of_roofline"], agreement.get(result["name"])
            joules = result["joules_per_tile"]
            rows.append(
                (
                    result["name"],
                    str(told["n"]),
                    f"{1e3 * told['mean']:.2f} ± {1e3 * told['std']:.2f}",
                    *(_percentile(told, level) for level in ("p50", "p90", "p95", "p99")),
                    f"{result['tiles_per_s']:.1f}",
                    f"{result['latency_to_first']:.2f}",
                    f"{1e3 * result['cpu_s_per_tile']:.1f}",
                    "-" if not joules else ", ".join(f"{value:.3g}" for value in joules.values()),
                    "-" if share is None else f"{100 * share:.0f} %",
                    "-" if near is None else f"{near['cosine_min']:.6f}",
                )
            )
        show_table(
            f"batch {of_batch['batch']} ({of_batch['scenario']}), ms per query",
            ("", "n", "mean ± std", "p50", "p90", "p95", "p99", "tiles/s", "× first", "CPU ms/tile", "J/tile",
             "of roofline", "least cosine"),
            rows,
            bold={result["name"] for result in of_batch["results"] if result["ours"]},
        )  # fmt: skip
        for missing in of_batch["failed"]:
            say(f"batch {of_batch['batch']}, {missing['name']} failed: {missing['why']}")
        for result in of_batch["results"]:
            if result["device_s"]:
                parts = ", ".join(
                    f"{stage} {1e3 * told['percentiles']['p50']['s']:.3f} (mean {1e3 * told['mean']:.3f})"
                    for stage, told in result["device_s"].items()
                )
                say(f"batch {of_batch['batch']}, {result['name']}, on the device, median ms: {parts}")
    if content["offline"] is not None:
        for result in content["offline"]["results"]:
            rate = result["tiles_per_s"]
            say(
                f"offline, {result['name']}, batch {result['batch']}: {rate['median']:.1f} tiles/s "
                f"({rate['median_low95']:.1f} - {rate['median_high95']:.1f})"
            )
    _show_rest(content)


def _percentile(told: dict[str, Any], level: str) -> str:
    """In ms; "~" before one that fewer queries carry than MLPerf asks for, "-" where too few do at all."""
    found = told["percentiles"].get(level)
    return "-" if found is None else f"{'' if found['mlperf'] else '~'}{1e3 * found['s']:.2f}"


def _heat(windows: list[dict[str, Any]]) -> str:
    """How hot it was after the first window and after the last, the hottest zone each."""
    told = []
    for window in (windows[0], windows[-1]):
        gpu = (window["condition"]["gpu"] or {}).get("temperature_c")
        zones = {**(window["condition"]["temperature_c"] or {}), **({} if gpu is None else {"GPU": gpu})}
        told.append(max(zones.items(), key=lambda zone: float(zone[1]), default=None))
    if told[0] is None or told[1] is None:
        return "no temperature can be read"
    return f"{told[0][1]:.0f} °C ({told[0][0]}) at first, {told[1][1]:.0f} °C ({told[1][0]}) at last"


def _show_rest(content: dict[str, Any]) -> None:
    sustained = content["sustained"]
    if sustained is not None:
        signs = "; ".join(sustained["throttled"]) or "no sign of throttling in the clocks that can be read"
        say(
            f"sustained, {sustained['name']}: {sustained['tiles_per_s']['median']:.1f} tiles/s, the last quarter "
            f"{100 * sustained['last_to_first']:.0f} % of the first; {signs}; {_heat(sustained['windows'])}"
        )
    for run in content["fresh"]:
        say(
            f"fresh process, mclst {run['provider']} {run['precision']}: first tile after {run['first_result_s']:.2f} s, "
            f"peak memory {run['peak_rss_bytes'] / 2**20:,.0f} MiB"
        )
    show_memory(content["memory"])
    for name, why in content["energy"]["not_available"].items():
        say(f"energy by {name}: not available ({why})")
    for bound in content["predictions"]:
        say(
            f"bound, not measured: {bound['device_name']}, {bound['precision']}, batch {bound['batch']}: at most "
            f"{bound['at_most_tiles_per_s']:,.0f} tiles/s, at least {1e3 * bound['at_least_s']:.2f} ms "
            f"({bound['limited_by']})"
        )
    for source in dict.fromkeys(
        f"{bound['device_name']}: {bound['source']}" for bound in content["predictions"]
    ):
        say(f"by {source}")
    for missing in content["absent"]:
        say(f"not run here: {missing['name']} ({missing['why']})")
