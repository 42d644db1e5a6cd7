"""How much one worker may have of what the machine has only once."""

from __future__ import annotations

from agent import config
from agent.host.bounds import BURST_SECONDS, Bounds, bounded

PORTS = 60_999 - 32_768 + 1
"""net.ipv4.ip_local_port_range: so many connections begin from one address to another one."""
REST_SECONDS = 60
"""How long the port of a connection that was closed rests (TIME_WAIT); the kernel lets it be used again sooner on loopback alone."""
TRIES, TRIED_SECONDS = 7, 127
"""A connection that is not answered is tried again so often, for so long (net.ipv4.tcp_syn_retries)."""
TRACKED_SECONDS, TRACKED = 120, 65_536
"""How long the kernel tracks a connection that was closed, and how many in all on a machine with 1 to 4 GB: nf_conntrack_max."""


def test_one_worker_leaves_others_room_in_the_table_of_connections() -> None:
    """Where it is full the kernel drops the packets of everybody, whatever they are about."""
    section = config.Redirect()
    a_second, burst = section.new_connections_per_worker, section.new_connections_per_worker * BURST_SECONDS
    assert section.max_connections_per_worker + a_second * TRACKED_SECONDS + burst < TRACKED * 0.6


def test_one_worker_leaves_ports_to_the_others() -> None:
    """However long it does its worst: connections open, closed, and not answered yet are fewer than there are ports."""
    section = config.Redirect()
    a_second, burst = section.new_connections_per_worker, section.new_connections_per_worker * BURST_SECONDS
    closed = a_second * REST_SECONDS + burst
    waiting = burst + a_second * TRIED_SECONDS / TRIES  # each try counts
    assert section.max_connections_per_worker + closed + waiting < PORTS * 0.95


def test_what_has_no_owner_has_one_share_together() -> None:
    """No set is of use where there is nothing to compare: what comes that far is bounded as one worker, in both ways."""
    text = "".join(bounded((), Bounds(1024, 250)))
    chain = text[text.index("chain bounds ") : text.index("chain outer_bounds ")]
    assert chain.index("add @busy_uids") < chain.index("meta skuid != 4294967295 return") < chain.index("goto unowned")
    unowned = text[text.index("chain unowned ") :].partition("}")[0]
    assert "limit rate over 250/second burst 3000 packets jump late_unowned" in unowned
    assert "ct count over 1024 counter reject with tcp reset" in unowned
