"""Has the machine what the agent needs: its port, its directories, memory, one release?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from agent.core.installed import CAT, KERNEL_JOURNAL, MEMORY_LIMIT, OWNER, START
from agent.doctor.checks.slow import hung
from agent.doctor.facts import Control, Facts, Place, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped, warn

PORT: Final = "port"
DISK: Final = "disk"
MEMORY: Final = "memory"
VERSION: Final = "version"

LEAST_BYTES: Final = 1 << 20
"""What a memory, its spare and a bundle take, twice over."""
LEAST_AVAILABLE: Final = 64 << 20
MIB: Final = 1 << 20


def port(facts: Facts) -> Iterator[Finding]:
    """Who listens where workers ask."""
    found = facts.listeners
    if isinstance(found, Unknown):
        yield skipped(PORT, found.why)
        return
    for one in found.listeners:
        if not one.taken:
            yield fail(PORT, "nobody listens there", f"systemctl restart {one.unit}", about=one.address)
        elif one.ours is False:
            which = f", process {one.pid}" if one.pid else ""
            command = (
                f"ps -o pid,user,args -p {one.pid}"
                if one.pid
                else facts.as_root(f"ss -ltnp sport = :{one.address.rpartition(':')[2]}")
            )
            yield fail(PORT, f"another program has it: {one.program}{which}", command, about=one.address)
        else:
            yield ok(PORT, "listened at" + (f" by {one.program}" if one.program else ""), about=one.address)


def disk(facts: Facts) -> Iterator[Finding]:
    """The directories that the service writes to."""
    found = facts.places
    if isinstance(found, Unknown):
        if found.hung:
            cause = "a directory of the service is on a disk that does not answer"
            yield hung(DISK, found, cause, "cat /proc/mounts", facts)
        else:
            yield skipped(DISK, found.why, next=facts.more)
        return
    wrong = [finding for place in found.places for finding in _place(place, facts)]
    yield from wrong
    if wrong:
        return
    if isinstance(facts.control, Control) and facts.control.document.get("memory_unwritten"):
        where = shlex.quote(found.places[0].path) if found.places else "/var/lib/credential-agent"
        said, command = "the agent could not write what it accepted: a restart would forget it", f"df -h {where}"
        if not isinstance(facts.inside, Unknown) and facts.inside.read_only:
            said, command = f"{said} (the unit's sandbox has it read-only)", CAT
        yield fail(DISK, said, command)
        return
    without = facts.control.document.get("without", {}) if isinstance(facts.control, Control) else {}
    if "state.directory" in without:
        yield warn(DISK, f"state.directory: {without['state.directory']}", "credential-agent status")
        return
    least = min((place.free_bytes for place in found.places), default=0)
    yield ok(DISK, f"{len(found.places)} directories can be written, {least // MIB} MiB free")


def _place(place: Place, facts: Facts) -> Iterator[Finding]:
    path = shlex.quote(place.path)
    about, state = place.path, place.key == "state.directory"
    if not place.there:
        command = f"install -d -o credential-agent -g credential-agent -m 0700 {path}" if state else START
        yield fail(DISK, f"{place.key}: the directory is not there", command, about=about)
    elif place.read_only:
        yield fail(DISK, f"{place.key}: its file system is read-only", f"findmnt -T {path}", about=about)
    elif not place.may_write and facts.root:
        said = f"{place.key}: the service may not write there: it belongs to {place.owner}"
        # What lies there is the agent's alone in the one; in the others it is also the workers' group's.
        deep = "-R " if state else ""
        yield fail(DISK, said, f"chown {deep}{OWNER} {path}", about=about)
    elif place.free_bytes < LEAST_BYTES:
        lost = "a restart would forget what comes now" if state else "programs read what it said before, or nothing"
        yield fail(DISK, f"{place.key}: the disk is full: {lost}", f"df -h {path}", about=about)
    elif place.free_files == 0:
        yield fail(DISK, f"{place.key}: no file can be made there: no inodes are left", f"df -i {path}", about=about)


def memory(facts: Facts) -> Iterator[Finding]:
    """The machine's, and the service's share."""
    found = facts.memory
    if isinstance(found, Unknown):
        yield skipped(MEMORY, found.why)
        return
    said = f"{found.available // MIB} of {found.total // MIB} MiB available"
    biggest = "ps -eo pid,user,rss,comm --sort=-rss"
    bad = False
    if found.killed:
        bad = True
        yield warn(
            MEMORY,
            f"the kernel has ended the agent {found.killed} times for want of memory",
            KERNEL_JOURNAL,
        )
    if found.limit and found.used > found.limit * 0.9:
        bad = True
        share = f"{found.used // MIB} of {found.limit // MIB} MiB"
        yield warn(MEMORY, f"the agent is near its limit: {share}", MEMORY_LIMIT)
    if found.total and found.available < max(LEAST_AVAILABLE, found.total // 50):
        bad = True
        yield warn(MEMORY, f"the machine is nearly out of it: {said}", biggest)
    elif found.pressure > 20:
        bad = True
        yield warn(MEMORY, f"everything waits for it {found.pressure:.0f} % of the time: {said}", biggest)
    if not bad:
        yield ok(MEMORY, said)


def version(facts: Facts) -> Iterator[Finding]:
    """One release: what is installed is what runs."""
    found = facts.releases
    if isinstance(found, Unknown):
        yield skipped(VERSION, found.why)
        return
    document = facts.control.document if isinstance(facts.control, Control) else {}
    running = str(document.get("version", ""))
    if found.missing:
        said = f"the installation is not whole: {', '.join(found.missing)} is missing; install the agent again"
        yield fail(VERSION, said, "ls -l /opt/credential-agent/releases")
    elif found.installed and found.running and found.installed != found.running:
        yield warn(VERSION, f"{found.running} runs, {found.installed} is installed", START)
    elif running and running != found.ours:
        yield warn(VERSION, f"version {running} runs, this command is {found.ours}", START)
    else:
        yield ok(VERSION, f"{found.ours}" + (f" ({found.installed})" if found.installed else ""))
