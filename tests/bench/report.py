"""What was measured, for people: a table, the aims and what was missed, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rounds = list[dict[str, Any]]
Results = dict[str, Any]


def spread(rounds: Rounds, what: str) -> tuple[float, float, float]:
    """The least, the median and the most of all rounds."""
    values = [one[what] for one in rounds if what in one] or [float("nan")]
    return min(values), statistics.median(values), max(values)


def table(results: Results) -> str:
    """Every load, a line for each server: medians of the rounds, with the least and the most of what is compared."""
    rows = [
        (
            "load",
            "server",
            "a second",
            "(least to most)",
            "us/request",
            "p50 ms",
            "p99",
            "(least to most)",
            "max",
            "errors",
        )
    ]
    for load, servers in results["loads"].items():
        for number, (server, rounds) in enumerate(servers.items()):
            least, middle, most = spread(rounds, "per_second")
            low, p99, high = spread(rounds, "p99")
            rows.append(
                (
                    load if not number else "",
                    server,
                    f"{middle:.0f}",
                    f"({least:.0f} to {most:.0f})",
                    f"{spread(rounds, 'cpu_us')[1]:.0f}",
                    f"{spread(rounds, 'p50')[1]:.1f}",
                    f"{p99:.1f}",
                    f"({low:.1f} to {high:.1f})",
                    f"{spread(rounds, 'max')[2]:.1f}",
                    str(sum(one["errors"] for one in rounds)),
                )
            )
    rows.append(("", "", "", "", "", "", "", "", "", ""))
    return "\n".join(_aligned(rows, left=2)) + "\n" + "\n".join(_aligned(_sizes(results), left=1))


def _sizes(results: Results) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "server",
            "processes",
            "first answer s",
            "(least to most)",
            "idle CPU %",
            "USS MB",
            "PSS",
            "RSS",
            "after the loads",
            "PSS",
            "RSS",
            "kinds",
        )
    ]
    for name, one in results["servers"].items():
        starts = sorted(one["start_seconds"])
        rows.append(
            (
                name,
                str(one["memory_after"][3]),
                f"{statistics.median(starts):.2f}",
                f"({starts[0]:.2f} to {starts[-1]:.2f})",
                f"{one['idle_percent']:.3f}",
                *(f"{size:.1f}" for size in one["memory"][:3]),
                *(f"{size:.1f}" for size in one["memory_after"][:3]),
                " ".join(one["kinds"]),
            )
        )
    return rows


def _aligned(rows: Sequence[tuple[str, ...]], *, left: int) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()


Aim = tuple[str, Callable[[Results], float], Callable[[Results], float], bool]


def _rate(load: str, server: str) -> Callable[[Results], float]:
    return lambda results: spread(results["loads"][load][server], "per_second")[1]


def _p99(load: str, server: str) -> Callable[[Results], float]:
    return lambda results: spread(results["loads"][load][server], "p99")[1]


def _ours(what: Callable[[Mapping[str, Any]], float]) -> Callable[[Results], float]:
    return lambda results: what(results["servers"]["agent"])


def _bound(value: float) -> Callable[[Results], float]:
    return lambda _: value


def _share(part: float, other: Callable[[Results], float]) -> Callable[[Results], float]:
    return lambda results: part * other(results)


_SDKS = "32, other SDKs"
AIMS: tuple[Aim, ...] = (
    ("32 at once, alike: at least nginx's a second", _rate("32, alike", "agent"), _rate("32, alike", "nginx"), True),
    ("32 at once, unlike: at least Go's a second", _rate("32, unlike", "agent"), _rate("32, unlike", "go"), True),
    ("256 at once, alike: at least Go's a second", _rate("256, alike", "agent"), _rate("256, alike", "go"), True),
    (
        "256 at once, alike: p99 under twice Go's, ms",
        _p99("256, alike", "agent"),
        _share(2, _p99("256, alike", "go")),
        False,
    ),
    ("burst of 512: p99 under nginx's, ms", _p99("burst of 512", "agent"), _p99("burst of 512", "nginx"), False),
    (
        "container: 0.9 of nginx's a second",
        _rate("container, 32", "agent"),
        _share(0.9, _rate("container, 32", "nginx")),
        True,
    ),
    (
        "Google token: 0.9 of nginx's a second",
        _rate("Google token, 32", "agent"),
        _share(0.9, _rate("Google token, 32", "nginx")),
        True,
    ),
    ("32 at once, other SDKs: at least Go's a second", _rate(_SDKS, "agent"), _rate(_SDKS, "go"), True),
    ("200/s while 8 compute: p99 under 4 ms", _p99("200/s, 8 compute", "agent"), _bound(4.0), False),
    (
        "200/s while 8 compute, the client first: p99 under 4 ms",
        _p99("200/s, 8 compute, asked first", "agent"),
        _bound(4.0),
        False,
    ),
    ("exec to first credential: 0.4 s", _ours(lambda one: statistics.median(one["start_seconds"])), _bound(0.4), False),
    (
        "exec of the server to the next credential, from a live agent: 0.15 s",
        lambda results: statistics.median(results["server_seconds"]),
        _bound(0.15),
        False,
    ),
    ("idle CPU: 0.02 %", _ours(lambda one: one["idle_percent"]), _bound(0.02), False),
    ("resident off cloud, all processes: 60 MB", _ours(lambda one: one["memory_after"][1]), _bound(60.0), False),
    ("resident, one server: 25 MB", _ours(lambda one: one["largest_mb"]), _bound(25.0), False),
)


def evaluated(results: Results) -> list[str]:
    """The aims: met, missed, or what could not be compared here."""
    lines = []
    for words, ours, bound, more in AIMS:
        try:
            value, limit = ours(results), bound(results)
        except KeyError as missing:
            lines.append(f"  ?   {words}: not measured here ({missing.args[0]})")
            continue
        met = value >= limit if more else value <= limit
        lines.append(f"{'met ' if met else 'MISS'}  {words}: {_short(value)} against {_short(limit)}")
    return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(results: Results, path: Path) -> bool:
    """The medians as bars; ``False`` without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    loads, names = list(results["loads"]), list(results["servers"])
    figure, axes = plt.subplots(1, 2, figsize=(16, 5))
    width = 0.8 / len(names)
    for axis, what, title in (
        (axes[0], "per_second", "a second (more is better)"),
        (axes[1], "p99", "p99, ms (less is better)"),
    ):
        for number, name in enumerate(names):
            measured = [
                (i, results["loads"][load][name]) for i, load in enumerate(loads) if name in results["loads"][load]
            ]
            axis.bar(
                [i + number * width for i, _ in measured],
                [spread(rounds, what)[1] for _, rounds in measured],
                width,
                label=name,
            )
        axis.set_title(title, fontsize=10)
        axis.set_xticks([i + width * (len(names) - 1) / 2 for i in range(len(loads))])
        axis.set_xticklabels(loads, rotation=30, ha="right", fontsize=8)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True
