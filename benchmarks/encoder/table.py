"""Print a document of `mclst-bench latency`."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.harness.tables import machine_line, show_memory, show_table, show_unavailable
from mclst.runtime.console import say


def show_latency(document: dict[str, Any]) -> None:
    """Print tables by batch, then everything else line by line."""
    say(machine_line(document))
    agreement = document["agreement"]["contenders"]
    for of_batch in document["batches"]:
        rows = []
        for result in sorted(of_batch["results"], key=lambda result: float(result["latency_s"]["mean"])):
            stats = result["latency_s"]
            share, near = result["of_roofline"], agreement.get(result["name"])
            joules = result["joules_per_tile"]
            rows.append(
                (
                    result["name"],
                    str(stats["n"]),
                    f"{1e3 * stats['mean']:.2f} ± {1e3 * stats['std']:.2f}",
                    *(_percentile(stats, level) for level in ("p50", "p90", "p95", "p99")),
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
        for peer in of_batch["failed"]:
            say(f"batch {of_batch['batch']}, {peer['name']} failed: {peer['why']}")
        for result in of_batch["results"]:
            if result["device_s"]:
                parts = ", ".join(
                    f"{stage} {1e3 * stats['percentiles']['p50']['s']:.3f} (mean {1e3 * stats['mean']:.3f})"
                    for stage, stats in result["device_s"].items()
                )
                say(f"batch {of_batch['batch']}, {result['name']}, on the device, median ms: {parts}")
    choice = document["choice"]
    if choice is not None:
        say(
            f"mclst-infer would choose {choice['chosen']}: {choice['slower_by']:.1%} slower than the "
            f"fastest here, {choice['fastest']}, at batch {choice['batch']}, "
            f"{'within' if choice['within_limit'] else 'NOT within'} 5 %"
        )
    if document["offline"] is not None:
        for result in document["offline"]["results"]:
            rate = result["tiles_per_s"]
            say(
                f"offline, {result['name']}, batch {result['batch']}: {rate['median']:.1f} tiles/s "
                f"({rate['median_low95']:.1f} - {rate['median_high95']:.1f})"
            )
    _show_rest(document)


def _percentile(stats: dict[str, Any], level: str) -> str:
    """In ms; "~" below MLPerf's count of queries, "-" where there are too few."""
    value = stats["percentiles"].get(level)
    return "-" if value is None else f"{'' if value['mlperf'] else '~'}{1e3 * value['s']:.2f}"


def _temperatures(windows: list[dict[str, Any]]) -> str:
    """Hottest zone after the first and after the last window."""
    hottest = []
    for window in (windows[0], windows[-1]):
        gpu = (window["condition"]["gpu"] or {}).get("temperature_c")
        zones = {**(window["condition"]["temperature_c"] or {}), **({} if gpu is None else {"GPU": gpu})}
        hottest.append(max(zones.items(), key=lambda zone: float(zone[1]), default=None))
    first, last = hottest
    if first is None or last is None:
        return "no temperature can be read"
    return f"{first[1]:.0f} °C ({first[0]}) at first, {last[1]:.0f} °C ({last[0]}) at last"


def _show_rest(document: dict[str, Any]) -> None:
    sustained = document["sustained"]
    if sustained is not None:
        signs = "; ".join(sustained["throttled"]) or "no sign of throttling in the clocks that can be read"
        say(
            f"sustained, {sustained['name']}: {sustained['tiles_per_s']['median']:.1f} tiles/s, "
            f"the last quarter {100 * sustained['last_to_first']:.0f} % of the first; {signs}; "
            f"{_temperatures(sustained['windows'])}"
        )
    for run in document["fresh"]:
        say(
            f"fresh process, mclst {run['provider']} {run['precision']}: "
            f"first tile after {run['first_result_s']:.2f} s, "
            f"peak memory {run['peak_rss_bytes'] / 2**20:,.0f} MiB"
        )
    show_memory(document["memory"])
    for name, why in document["energy"]["not_available"].items():
        say(f"energy by {name}: not available ({why})")
    for bound in document["predictions"]:
        say(
            f"bound, not measured: {bound['device_name']}, {bound['precision']}, batch {bound['batch']}: "
            f"at most {bound['at_most_tiles_per_s']:,.0f} tiles/s, "
            f"at least {1e3 * bound['at_least_s']:.2f} ms ({bound['limited_by']})"
        )
    for source in dict.fromkeys(
        f"{bound['device_name']}: {bound['source']}" for bound in document["predictions"]
    ):
        say(f"by {source}")
    show_unavailable(document["absent"])
