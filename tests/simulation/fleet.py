"""Ten thousand agents that start in the same second, and what STS sees of them.

Every agent is a real :class:`agent.identity.store.Store` with the real schedule, and holds one grant that needs one call
for each credential; STS gives an hour and throttles
at 600 calls a second (per account and region). ``python -m tests.simulation.fleet [FILE.png]`` draws it.

Bounds, for N agents and credentials of L seconds:

- After the first cycle no second sees more than ten times the mean.
- First cycle with ``[mint] spread_seconds = S``: no second sees more than ``N/S + 5 sqrt(N/S)`` calls (a Poisson bound).
- First cycle without: the first second sees N calls and their first retries (at most 4 N in all). From then on full jitter thins them out: after
  ``20 + 3 N/600`` seconds every agent has its credential, and calls number at most ``8 N``.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from agent.core.model import HttpBroker
from agent.core.verdict import Accepted, Failure, Memory, Policy
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import aws_credential, bundle

STS_A_SECOND = 600
LIFETIME = timedelta(hours=1)


@dataclass
class Traffic:
    """Calls by second from the start."""

    calls: Counter[int] = field(default_factory=Counter)
    throttled: Counter[int] = field(default_factory=Counter)
    served_by: int = 0

    def peak(self, first: int, last: int) -> int:
        return max((self.calls[second] for second in range(first, last)), default=0)

    def mean(self, first: int, last: int) -> float:
        return sum(self.calls[second] for second in range(first, last)) / (last - first)


def fleet(
    agents: int = 10_000,
    *,
    hours: float = 3,
    spread: float = 0.0,
    seed: int = 1,
    outage: tuple[float, float] = (0.0, 0.0),
) -> Traffic:
    """Run ``agents`` for ``hours``, with STS down between the two seconds of ``outage``; only instants at which one of them has something to do are visited."""
    rng = random.Random(seed)
    traffic = Traffic()
    submitted = bundle(
        HttpBroker(id="job", url="https://broker.example/"),
    )
    policy = Policy(fallback=frozenset(), spread=timedelta(seconds=spread))
    stores = []
    due: list[tuple[float, int]] = []
    for number in range(agents):
        store = Store(policy, Memory(), START, random.Random(rng.getrandbits(64)))
        verdict = store.evaluate(submitted, START)
        assert isinstance(verdict, Accepted)
        store.accept(verdict, START)
        stores.append(store)
        due.append((_next(store, 0.0), number))
    heapq.heapify(due)
    waiting = agents
    while due[0][0] < hours * 3600:
        at, number = heapq.heappop(due)
        store, now, second = stores[number], START + timedelta(seconds=at), int(at)
        for work in store.due(now):
            traffic.calls[second] += 1
            if outage[0] <= at < outage[1]:
                store.failed(work, Failure("network", "no answer", False, now), now)
                continue
            if traffic.calls[second] - traffic.throttled[second] > STS_A_SECOND:
                traffic.throttled[second] += 1
                store.failed(work, Failure("Throttling", "rate exceeded", False, now), now)
                continue
            first = store.slots()[0].expires_at is None
            credential = aws_credential(now, minutes=LIFETIME.total_seconds() / 60)
            store.put(work, credential, now, ends=now + LIFETIME)
            if first:
                waiting -= 1
                traffic.served_by = second
        heapq.heappush(due, (max(_next(store, at), at + 0.001), number))
    assert waiting == 0, f"{waiting} agents never had a credential"
    return traffic


def _next(store: Store, at: float) -> float:
    moments = [slot.renew_at for slot in store.slots() if slot.renew_at is not None]
    return max((min(moments) - START).total_seconds(), at)


SPREAD_SECONDS = 300
HOURS = 3


def draw(path: Path) -> None:
    """Draw both first cycles and what follows; say the numbers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, rows = plt.subplots(
        2, 2, figsize=(14, 8), sharey=True, width_ratios=(1, 2), layout="constrained", squeeze=False
    )
    figure.suptitle("10,000 agents started in the same second: what STS sees", fontsize=16, weight="bold")
    for row, spread, title in (
        (rows[0], 0, "all at once; STS throttles at 600 calls a second"),
        (rows[1], SPREAD_SECONDS, f"with [mint] spread_seconds = {SPREAD_SECONDS}"),
    ):
        traffic = fleet(hours=HOURS, spread=spread)
        mean, peak = traffic.mean(3600, HOURS * 3600), traffic.peak(3600, HOURS * 3600)
        first = max(traffic.calls.values())
        print(
            f"spread {spread} s: {first} calls in the busiest second, all served after {traffic.served_by + 1} s; "
            f"after the first hour {mean:.1f} a second, {peak} in the busiest"
        )
        for panel, seconds, unit in ((row[0], range(400), 1), (row[1], range(HOURS * 3600), 60)):
            at = [second / unit for second in seconds]
            panel.fill_between(at, [traffic.calls[s] for s in seconds], color="#2a6f97", step="mid", label="calls")
            refused = [traffic.throttled[s] for s in seconds]
            panel.fill_between(
                at, refused, where=[n > 0 for n in refused], color="#d1495b", step="mid", label="of them throttled"
            )
            panel.axhline(10 * mean, color="#edae49", linewidth=1.5, label="ten times the mean")
            panel.axhline(mean, color="#222", linewidth=1, linestyle=":", label=f"mean: {mean:.1f} a second")
            panel.set_yscale("symlog", linthresh=10)
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.set(xlim=(-at[-1] / 100, at[-1]), ylim=(0, 60_000))
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set(title="the first minutes", xlabel="seconds", ylabel="calls per second")
        row[1].set(title=title, xlabel="minutes")
        row[1].legend(loc="upper right", frameon=False, ncols=4)
        row[0].text(
            0.97,
            0.95,
            f"busiest second: {first:,}\neverybody served after {traffic.served_by + 1} s",
            transform=row[0].transAxes,
            ha="right",
            va="top",
        )
        row[1].text(0.97, 0.82, f"busiest second after the first hour: {peak}", transform=row[1].transAxes, ha="right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "build/fleet.png"))
