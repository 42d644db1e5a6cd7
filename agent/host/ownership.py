"""nftables from within: a connection to the kernel that stays, and owns the tables it makes.

The library may crash (an assertion, a fault) on a script or a ruleset that it does not understand. So what need not
happen in this process happens in a child (:func:`run_apart`, :func:`listing`), and what must, the loading of owned
tables, is rehearsed in one first.

``nft`` ends, and a table with ``flags owner`` ends with its maker. So the process that holds tables speaks through
libnftables, of which ``nft`` is the command line; it comes with it (Debian: ``libnftables1``, a dependency of
``nftables``). Through ctypes, since its own Python module is another package on every distribution.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from typing import Final

from agent.core.errors import HostError
from agent.host import nft
from agent.host.apart import SECONDS, apart

_LIBRARY: Final = "libnftables.so.1"
LIBRARY: Final = "libnftables"
_STATELESS: Final = 1 << 2  # NFT_CTX_OUTPUT_STATELESS: no counters
_TABLES: Final = tuple(f"{name}{end}" for name in (nft.TABLE, nft.CLOSED) for end in ("", nft.HELD))

# The parts that change by themselves: a control group that is gone is shown by its number, sets fill (those that do are
# called busy: agent/host/bounds.py), gates are added.
_CGROUP: Final = re.compile(r"socket cgroupv2 level (\d+) (?:\"[^\"]*\"|\S+)")
_BUSY: Final = re.compile(r"^\tset busy_\w+ \{.*?^\t\}\n", re.MULTILINE | re.DOTALL)
_GATE: Final = re.compile(r"^\tchain slice_\d+ \{.*?^\t\}\n", re.MULTILINE | re.DOTALL)


class Connection:
    """One user of libnftables, with its own socket to the kernel.

    Args:
        rehearsal: whether scripts are only checked, by the kernel too, and take no effect (``nft --check``).

    Raises:
        HostError: there is no such library.
    """

    def __init__(self, *, rehearsal: bool = False) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
            library.nft_ctx_new.restype = ctypes.c_void_p
            library.nft_ctx_new.argtypes = [ctypes.c_uint32]
            for name in ("nft_ctx_buffer_error", "nft_ctx_buffer_output", "nft_ctx_free"):
                getattr(library, name).argtypes = [ctypes.c_void_p]
            for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
                getattr(library, name).argtypes = [ctypes.c_void_p]
                getattr(library, name).restype = ctypes.c_char_p
            library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
            library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
            library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        except (OSError, AttributeError) as error:
            raise HostError(f"{_LIBRARY}: {error}", hint="install the package nftables") from None
        self._library, self.rehearsal = library, rehearsal
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise HostError(f"{_LIBRARY}: no connection to the kernel")
        library.nft_ctx_buffer_error(self._context)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_output_set_flags(self._context, _STATELESS)
        library.nft_ctx_set_dry_run(self._context, rehearsal)

    def run(self, script: str) -> str:
        """Run a script: all of it takes effect, or none. Returns what it prints.

        Raises:
            HostError: the kernel refused.
        """
        status = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
        said = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        printed = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        if status != 0:
            raise HostError(f"nft: {next(iter(said.strip().splitlines()), f'status {status}')}")
        return printed

    def close(self) -> None:
        """End it, and every table that it owns."""
        self._library.nft_ctx_free(self._context)
        self._context = None


def run_apart(script: str, *, rehearsal: bool = False, seconds: float = SECONDS) -> None:
    """Run a script in a child, or only check it there; it has so many seconds.

    Raises:
        CrashedError: the library crashed.
        HostError: the kernel refused.
    """
    apart(lambda: Connection(rehearsal=rehearsal).run(script), what=LIBRARY, seconds=seconds)


def listing(*, seconds: float = SECONDS) -> tuple[str, ...]:
    """Our tables as the kernel has them, for comparison; empty where one is not there. It has so many seconds.

    Raises:
        CrashedError: the library crashed.
        HostError: there is none.
    """
    return tuple(apart(_listing, what=LIBRARY, seconds=seconds).split("\0"))


def _listing() -> str:
    connection, found = Connection(), []
    for table in _TABLES:
        try:
            text = connection.run(f"list table {table}")
        except HostError:
            text = ""
        text = _GATE.sub("", _BUSY.sub("", _CGROUP.sub(r"socket cgroupv2 level \1 -", text)))
        found.append(re.sub(r"\n+", "\n", text))  # a chain that was removed above leaves its blank line
    return "\0".join(found)


def give_back() -> None:
    """Give back the memory that a script took: libnftables needs megabytes for a moment, and malloc would keep them."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
