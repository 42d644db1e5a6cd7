"""How is a set, a chain, a range written for ``nft -f``?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def set_(name: str, kind: str, elements: Sequence[str], extra: str = "") -> str:
    """A named set of that type."""
    listed = f" elements = {{ {', '.join(elements)} }};" if elements else ""
    return f"\tset {name} {{ type {kind};{f' {extra}' if extra else ''}{listed} }}\n"


def chain(name: str, hook: str | None, rules: Sequence[str]) -> str:
    """A chain: at the kernel's ``hook``, or one to jump to."""
    lines = [f"{hook} policy accept;"] if hook else []
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in [*lines, *rules]) + "\t}\n"


def elements(ranges: Iterable[tuple[int, int]]) -> list[str]:
    """Ranges as elements of a set."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in ranges]


def emptied(table: str, chains: Sequence[str]) -> str:
    """The script after which these chains of the table are empty, there or not; for no chain the empty one."""
    if not chains:
        return ""
    there = "".join(f"\tchain {name} {{ }}\n" for name in chains)
    return f"table {table} {{\n{there}}}\n" + "".join(f"flush chain {table} {name}\n" for name in chains)
