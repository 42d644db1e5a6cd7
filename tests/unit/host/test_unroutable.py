"""The way to the metadata service is given back when the rules that took it are gone, as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.host import systemctl, unroutable
from agent.host.tools import RefusedError

USUAL = {"-4": ["0: from all lookup local", "32766: from all lookup main"], "-6": ["0: from all lookup local"]}
OURS = [
    "169: from all to 169.254.169.254 iif lo uidrange 0-999 goto 171 proto kernel",
    "170: from all to 169.254.169.254 unreachable proto kernel",
    "170: from all to 169.254.170.2 unreachable proto kernel",
    "171: from all nop proto kernel",
]


class Kernel:
    """Its routing policy, as ip-rule(8) changes and shows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rules = {family: [*rules, *OURS] for family, rules in USUAL.items()}
        self.stay = ""  # the rule of this preference cannot be removed just now
        self.lacks: set[str] = set()  # families
        self.forgotten: list[str] = []  # units whose failure is over
        monkeypatch.setattr(unroutable, "call", self._call)
        monkeypatch.setattr(systemctl, "forget_failure", lambda unit, **_: self.forgotten.append(unit))

    def _call(self, program: str, arguments: list[str], **__: float) -> str:
        assert program == "ip"
        family, _, what, *rest = arguments
        if family in self.lacks:
            raise RefusedError("ip: address family not supported by protocol")
        rules = self.rules[family]
        if what == "show":
            return "".join(rule.replace(":", ":\t", 1) + "\n" for rule in rules)
        assert (what, rest[0]) == ("del", "pref")
        found = next((rule for rule in rules if rule.startswith(f"{rest[1]}:")), None)
        if found is None or rest[1] == self.stay:
            raise RefusedError("ip: RTNETLINK answers: no buffer space available")
        rules.remove(found)
        return ""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    path = tmp_path / unroutable.MARK
    path.touch()
    return path


def test_what_took_the_way_is_taken_away_and_nothing_else(kernel: Kernel, mark: Path) -> None:
    """Only where the mark says that it was added."""
    before = {family: list(rules) for family, rules in kernel.rules.items()}
    mark.unlink()
    unroutable.lift(mark)
    assert kernel.rules == before
    assert kernel.forgotten == []
    mark.touch()
    unroutable.lift(mark)
    assert kernel.rules == USUAL
    assert not mark.exists()


@pytest.mark.parametrize("silent", [False, True])
def test_whatever_took_the_way_has_failed_no_more_once_it_is_given_back(
    kernel: Kernel, mark: Path, monkeypatch: pytest.MonkeyPatch, *, silent: bool
) -> None:
    """Else the machine were degraded, and its monitoring cry, until the next boot; who gives it back waits for nobody."""
    if silent:

        def fails(*_: object, **__: object) -> None:
            raise HostError("systemctl reset-failed: no answer within 5 s")

        monkeypatch.setattr(systemctl, "forget_failure", fails)
    kernel.stay = "170"
    with pytest.raises(HostError, match="expected none"):
        unroutable.lift(mark)
    assert kernel.forgotten == []
    kernel.stay = ""
    unroutable.lift(mark)
    assert kernel.forgotten == [unroutable.UNIT] * (not silent)
    assert not mark.exists()


@pytest.mark.parametrize("preference", [str(one) for one in unroutable.PREFERENCES])
def test_a_rule_that_stays_is_not_forgotten(kernel: Kernel, mark: Path, preference: str) -> None:
    """Without the mark nobody would try again, nor say why workers have no way."""
    kernel.stay = preference
    with pytest.raises(HostError, match=f"got '{preference}: from all"):
        unroutable.lift(mark)
    assert mark.exists()
    kernel.stay = ""
    unroutable.lift(mark)
    assert kernel.rules == USUAL
    assert not mark.exists()


def test_a_kernel_without_a_family_has_no_rules_of_it(kernel: Kernel, mark: Path) -> None:
    """IPv6 may be switched off: what it refuses is no rule that stays."""
    kernel.lacks = {"-6"}
    unroutable.lift(mark)
    assert kernel.rules["-4"] == USUAL["-4"]
    assert not mark.exists()
