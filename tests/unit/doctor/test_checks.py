"""What is said of each thing that can be wrong: its cause, and a command that can be typed as it stands."""

from __future__ import annotations

import random
import re
import shlex
from typing import Any, NamedTuple, get_args

import click
import msgspec
import pytest

from agent.cli import cli
from agent.core import verdict
from agent.core.model import Grant
from agent.doctor import diagnose, failed
from agent.doctor.checks import CHECKS
from agent.doctor.facts import (
    Access,
    Arrival,
    Bundles,
    Clock,
    Clouds,
    Configuration,
    Control,
    Exposed,
    Facts,
    Fault,
    Inside,
    KeyFile,
    KeyFiles,
    Listener,
    Listeners,
    Memory,
    Metadata,
    Releases,
    Shell,
    Unit,
    Units,
    Unknown,
    Way,
)
from agent.doctor.finding import Finding, Level, fail, ok, ordered, skipped, warn
from tests.fakes.clock import START
from tests.test_typed import cannot
from tests.unit.doctor.support import (
    KEY,
    PATH,
    answered,
    beside,
    cloud,
    endpoint,
    found,
    healthy,
    key_file,
    place,
    server,
    service,
    silent,
    status,
    unit,
    with_,
    without,
)
from tests.unit.identity.driver import Store


class Case(NamedTuple):
    """One thing that is wrong.

    Attributes:
        check: the check that must say so.
        cause: in its line.
        next: in its command.
    """

    name: str
    facts: Facts
    check: str
    level: Level
    cause: str
    next: str


def way(**changes: Any) -> Way:
    base = {"path": "/run/credential-agent/env", "act": "read", "group": "credential-workers", "wanted": "0640"}
    return Way(**{**base, **changes})


def half_installed() -> Units:
    units = dict(beside("credential-agent.socket", triggers=("credential-agent-serve.service",)).units)
    units["credential-agent-serve.service"] = Unit(
        name="credential-agent-serve.service", load="not-found", active="inactive"
    )
    return Units(present=True, units=units)


def led(**changes: Any) -> Arrival:
    return Arrival(**{"expected": True, "state": "led", "table": True, **changes})


HUNG = Unknown(why="no answer within 2 s", hung=True)
REFUSAL = {"origin": "push", "code": "signer", "reason": "unknown", "at": "2030-01-01T00:00:00Z"}
TIMELESS = {"clock": Clock(synchronised=False), "metadata": Metadata(platform="other"), "clouds": Clouds()}
RENEWED = {"cloud": "aws", "grant": "g", "type": "aws-assume-role", "last_failure": None}
CASES = [
    # -- the daemon
    Case("masked", with_(units=unit(load="masked"), control=silent()), "daemon", Level.FAIL, "install the agent again", "systemctl unmask"),
    Case("not installed", with_(units=unit(load="not-found"), control=Control(state="absent", path="/x", why="nobody")),
         "daemon", Level.FAIL, "not installed", "credential-agent run"),
    Case("bad unit", with_(units=unit(load="bad-setting"), control=silent()), "daemon", Level.FAIL, "bad-setting", "systemd-analyze"),
    Case("stopped by hand", with_(units=unit(active="inactive", sub="dead", result="success"), control=silent()),
         "daemon", Level.FAIL, "is stopped", "systemctl start"),
    Case("a mistake in the configuration",
         with_(units=unit(active="activating", sub="auto-restart", status="78", last_error="x: unknown key"), control=silent(),
               configuration=Configuration(path=PATH, as_service=True, faults=(Fault(key="x", said="x: unknown key", text=True),))),
         "daemon", Level.FAIL, "x: unknown key", "credential-agent check"),
    Case("crashes", with_(units=unit(result="signal", status="11"), control=silent()), "daemon", Level.FAIL, "signal", "journalctl"),
    Case("out of memory", with_(units=unit(result="oom-kill", status="9"), control=silent()), "daemon", Level.FAIL, "memory", "journalctl --no-pager -k"),
    Case("no service user", with_(units=unit(status="217"), control=silent()), "daemon", Level.FAIL, "user is not there", "systemd-sysusers"),
    Case("state directory", with_(units=unit(status="238"), control=silent()), "daemon", Level.FAIL, "another user's", "chown -R"),
    Case("frozen", with_(units=unit(active="active", sub="running", result="success", pid=42, process="S", frozen=True), control=silent()),
         "daemon", Level.FAIL, "frozen", "systemctl thaw credential-agent.service"),
    Case("a drop-in that systemd refuses", with_(units=unit(active="active", sub="running", result="success", load="bad-setting", pid=42)),
         "daemon", Level.WARN, "would not be started again", "systemd-analyze verify credential-agent.service"),
    Case("masked while it runs", with_(units=unit(active="active", sub="running", result="success", load="masked", pid=42)),
         "daemon", Level.WARN, "would not be started again: it is masked", "systemctl unmask credential-agent.service"),
    Case("its control socket's name is gone", with_(units=unit(active="active", sub="running", result="success", pid=42),
                                                   control=Control(state="absent", path="/x", why="nobody listens")),
         "daemon", Level.FAIL, "does not answer", "systemctl restart credential-agent-control.socket credential-agent.service"),
    Case("the watch is stopped", with_(units=beside("credential-agent-watch.service", active="inactive", enabled="enabled")),
         "daemon", Level.WARN, "it is stopped", "systemctl start credential-agent-watch.service"),
    Case("couriers have no socket", with_(units=beside("credential-agent-courier.socket", active="inactive", enabled="enabled")),
         "daemon", Level.WARN, "couriers can bring no bundle", "systemctl restart credential-agent.service"),
    Case("stopped by a signal", with_(units=unit(active="active", sub="running", result="success", pid=42, process="T"), control=silent()),
         "daemon", Level.FAIL, "SIGSTOP", "kill -CONT 42"),
    Case("held by the kernel", with_(units=unit(active="active", result="success", pid=42, process="D"), control=silent()),
         "daemon", Level.FAIL, "kernel holds it", "/proc/42/stack"),
    Case("hangs", with_(units=unit(active="active", result="success", pid=42, process="S"), control=silent()),
         "daemon", Level.FAIL, "hangs", "systemctl restart"),
    Case("has no processor", with_(units=unit(active="active", result="success", pid=42, process="S"), control=silent(),
                                   memory=Memory(total=8 << 30, available=4 << 30, waiting=80.0)),
         "daemon", Level.WARN, "overloaded", "ps -eo"),
    Case("its question hangs", with_(units=unit(active="active", result="success", pid=42, process="S"), control=HUNG),
         "daemon", Level.FAIL, "hangs", "systemctl restart"),
    Case("nobody answers workers", with_(control=answered(servers=[])), "daemon", Level.FAIL, "no process answers workers", "journalctl"),
    Case("an old answer", with_(control=answered(servers=[server(newest=False)])), "daemon", Level.FAIL, "no process answers", "journalctl"),
    Case("no process apart", with_(control=answered(servers=[server(apart=False)])), "daemon", Level.WARN, "agent's own process", "systemctl restart"),
    Case("ended, and workers are served", with_(units=without("credential-agent-serve.service", active="active"), control=silent()),
         "daemon", Level.OK, "workers are served with what the agent told", ""),
    Case("what answers workers is stopped by a signal", with_(units=beside("credential-agent-serve.service", stopped=(7, 8))),
         "daemon", Level.FAIL, "process 7 8 is stopped", "kill -CONT 7 8"),
    Case("what answers workers is frozen", with_(units=beside("credential-agent-serve.service", frozen=True)),
         "daemon", Level.FAIL, "it was frozen", "systemctl thaw credential-agent-serve.service"),
    Case("what answers workers has no user", with_(units=beside("credential-agent-serve.service", active="failed", result="exit-code", status="217")),
         "daemon", Level.FAIL, "user is not there", "-u credential-agent-serve.service"),
    Case("what answers workers begins again and again", with_(units=beside("credential-agent-serve.service", active="activating", restarts=9)),
         "daemon", Level.FAIL, "again and again", "-u credential-agent-serve.service"),
    Case("the user was removed", with_(user=False), "daemon", Level.FAIL, "user credential-agent is not there", "systemd-sysusers"),
    Case("half installed", with_(units=half_installed()), "daemon", Level.FAIL, "credential-agent-serve.service, which is not there", "list-unit-files"),
    Case("begins again and again", with_(units=unit(active="activating", sub="start", result="success", restarts=9), control=silent()),
         "daemon", Level.FAIL, "activating", "journalctl"),
    Case("a sandbox that hides the configuration", with_(units=unit(status="78", drop_ins=("/etc/systemd/system/credential-agent.service.d/x.conf",)), control=silent()),
         "daemon", Level.FAIL, "outside of the unit's sandbox nothing is wrong", "systemctl cat"),
    Case("a drop-in, and trouble", with_(units=unit(drop_ins=("/etc/x.conf",)), control=silent()), "daemon", Level.WARN, "changed by /etc/x.conf: is that the cause?", "systemctl cat"),
    Case("a drop-in, and all is well", with_(units=unit(active="active", result="success", drop_ins=("/etc/x.conf",))), "daemon", Level.OK, "changed by /etc/x.conf", ""),
    Case("another user by a drop-in", with_(units=unit(active="active", result="success", user="nobody", drop_ins=("/etc/x.conf",))),
         "daemon", Level.FAIL, "runs as nobody in place of credential-agent", "systemctl cat"),
    Case("a socket that it needs is masked", with_(units=without("credential-agent-control.socket", load="masked"), control=silent()),
         "daemon", Level.FAIL, "credential-agent-control.socket is masked", "systemctl unmask credential-agent-control.socket"),
    Case("nothing takes the log", with_(control=answered(log_dropped=7)), "daemon", Level.WARN, "7 lines of its log are lost", "systemd-journald"),
    Case("ended, and nothing to serve", with_(units=without("credential-agent-serve.service", active="active"), control=silent(),
                                            arrival=led(asked={"uid 1000": "timeout"})),
         "daemon", Level.FAIL, "has nothing to serve", "journalctl"),
    Case("disabled", with_(units=unit(active="active", enabled="disabled")), "daemon", Level.WARN, "next boot", "systemctl enable"),
    Case("its socket failed", with_(units=beside("credential-agent.socket", active="failed", result="resources")),
         "daemon", Level.FAIL, "resources", "-u credential-agent.socket"),
    Case("the socket that it needs failed", with_(units=without("credential-agent.socket", active="failed", result="resources"), control=silent()),
         "daemon", Level.FAIL, "does not start: credential-agent.socket is failed", "systemctl status --no-pager credential-agent.socket"),
    Case("the watch crashes", with_(units=beside("credential-agent-watch.service", active="activating", sub="auto-restart", result="exit-code", status="1")),
         "daemon", Level.FAIL, "again and again", "-u credential-agent-watch.service"),
    Case("the redirect is masked", with_(units=beside("credential-agent-redirect.service", load="masked")),
         "daemon", Level.FAIL, "masked", "systemctl unmask credential-agent-redirect.service"),
    Case("no systemd", with_(units=Unknown(why="x"), control=Control(state="absent", path="/x", why="nobody listens")),
         "daemon", Level.FAIL, "nobody listens", "credential-agent run"),
    Case("no systemd, and it hangs", with_(units=Unknown(why="x"), control=silent()), "daemon", Level.FAIL, "hangs; end it", "ps -eo"),
    # -- permissions
    Case("a closed directory", with_(access=Access(ways=(way(state="closed", blocked="/run/credential-agent"), way(path="/x", state="closed", blocked="/run/credential-agent")))),
         "access", Level.FAIL, "may not enter it, and so not use /run/credential-agent/env, /x", "chmod o+x /run/credential-agent"),
    Case("a closed file", with_(access=Access(ways=(way(state="denied", mode="0600", owner="root:root"),))),
         "access", Level.FAIL, "a member of credential-workers may not read it: its mode is 0600", "chgrp credential-workers /run/credential-agent/env && chmod 0640"),
    Case("a program for root alone", with_(access=Access(ways=(way(path="/opt/x", group="", act="run", wanted="0755", state="denied", mode="0700", owner="root:root"),))),
         "access", Level.FAIL, "a worker may not run it", "chmod 0755 /opt/x"),
    Case("a socket of root's", with_(access=Access(ways=(way(path="/run/s", group="", user="credential-agent", act="connect to", wanted="0600", state="denied", mode="0600", owner="root:root"),))),
         "access", Level.FAIL, "the user credential-agent may not connect to it", "chown credential-agent /run/s && chmod 0600 /run/s"),
    Case("a socket that was removed", with_(units=beside("credential-agent-serve.socket"), access=Access(ways=(way(path="/run/s", group="", user="credential-agent", state="absent"),))),
         "access", Level.FAIL, "once it restarts", "systemctl restart credential-agent-serve.socket credential-agent"),
    Case("everybody may ask", with_(access=Access(exposed=(Exposed(path="/s", act="ask", whom="every user", owner="root:x", keep="o-rwx"),))),
         "access", Level.WARN, "every user may ask it", "chown root:x /s && chmod o-rwx /s"),
    Case("changed, and not read again", with_(control=answered(configuration={"changed_at": "2029-12-31T00:00:00Z"}),
                                              configuration=Configuration(path=PATH, as_service=True, changed=1_893_456_000)),
         "configuration", Level.WARN, "changed after the agent read it", "systemctl reload credential-agent"),
    Case("not written, in its sandbox", with_(control=answered(memory_unwritten=True), inside=Inside(read_only=("/var/lib/credential-agent",))),
         "disk", Level.FAIL, "sandbox has it read-only", "systemctl cat"),
    Case("an overloaded machine", with_(configuration=HUNG, memory=Memory(total=8 << 30, available=4 << 30, waiting=90.0)),
         "configuration", Level.WARN, "overloaded (programs wait for a processor 90 %", "ps -eo"),
    Case("read-only in its sandbox", with_(inside=Inside(read_only=("/var/lib/credential-agent",))), "access", Level.FAIL, "read-only in the unit's sandbox", "systemctl cat"),
    Case("hidden by its sandbox", with_(inside=Inside(hidden=(KEY,))), "access", Level.FAIL, "does not see it", "systemctl cat"),
    Case("noexec", with_(access=Access(ways=(way(act="run", state="noexec"),))), "access", Level.FAIL, "noexec", "findmnt -T"),
    Case("a file that was removed", with_(access=Access(ways=(way(state="absent"),))), "access", Level.WARN, "not there", "systemctl reload credential-agent"),
    Case("everybody may change it", with_(access=Access(exposed=(Exposed(path=PATH, act="change", whom="every user", owner="root", keep="go-w"),))),
         "access", Level.FAIL, "every user may change it", f"chown root {PATH} && chmod go-w {PATH}"),
    Case("everybody may read it", with_(access=Access(exposed=(Exposed(path="/t", act="read", whom="every user", owner="a:b", keep="o-rwx"),))),
         "access", Level.WARN, "every user may read it", "chown a:b /t && chmod o-rwx /t"),
    # -- the configuration
    Case("a signer behind a closed directory", with_(configuration=Configuration(path=PATH, faults=(
             Fault(key="signers[0].key", said="signers[0].key: permission denied", path="/s/x", blocked="/s"),))),
         "configuration", Level.FAIL, "may not look into /s", "chmod o+x /s"),
    Case("a signer for root alone", with_(configuration=Configuration(path=PATH, faults=(
             Fault(key="signers[0].key", said="signers[0].key: permission denied", path="/s/x", mode="its mode is 0600, its owner root:root"),))),
         "configuration", Level.FAIL, "its mode is 0600", "chown root:credential-agent /s/x && chmod 0640 /s/x"),
    Case("a typo", with_(configuration=Configuration(path=PATH, faults=(Fault(key="listen.htp", said="listen.htp: unknown key", text=True),))),
         "configuration", Level.FAIL, "unknown key", "credential-agent check"),
    Case("unreadable", with_(configuration=Configuration(path=PATH, faults=(Fault(key="", said=f"{PATH}: cannot be read: permission denied", text=True),))),
         "configuration", Level.FAIL, "permission denied", "chown root:credential-agent"),
    Case("its directory is closed", with_(configuration=Configuration(path=PATH, blocked="/etc/credential-agent",
                                                                      faults=(Fault(key="", said=f"{PATH}: cannot be read: permission denied", text=True),))),
         "configuration", Level.FAIL, "may not look into /etc/credential-agent", "chmod o+x /etc/credential-agent"),
    Case("a mount hangs", with_(configuration=HUNG), "configuration", Level.FAIL, "mount", "cat /proc/mounts"),
    # -- the key
    Case("absent", with_(keys=key_file(state="absent")), "key", Level.FAIL, "not there", "keygen"),
    Case("denied", with_(keys=key_file(state="denied", why="its mode is 0600")), "key", Level.FAIL, "may not read", "chown root:credential-agent"),
    Case("its directory", with_(keys=key_file(state="denied", blocked="/secret")), "key", Level.FAIL, "/secret", "chmod o+x /secret"),
    Case("everybody's", with_(keys=key_file(state="shared", why="its mode is 0644")), "key", Level.FAIL, "others may read", "chmod 0640"),
    Case("a directory", with_(keys=key_file(state="not-a-file", why="a directory")), "key", Level.FAIL, "a directory", "ls -ld"),
    Case("no key", with_(keys=key_file(state="not-a-key", why="a JWK is expected")), "key", Level.FAIL, "JWK", f"ls -l {KEY}"),
    Case("no public key of a KMS", with_(keys=key_file(state="absent", public=True)), "key", Level.FAIL, "key service", "credential-agent config show keys"),
    Case("a credential that is no key", with_(keys=KeyFiles(keys=(KeyFile(key="keys[0]", name="credential-agent.key", state="not-a-key", why="a JWK is expected"),))),
         "key", Level.FAIL, "JWK", "ls -l /etc/credstore"),
    Case("not given", with_(keys=key_file(state="elsewhere", name="credential-agent.key", why="x"), control=answered(absent_keys=["credential-agent.key"])),
         "key", Level.FAIL, "not given", "ls -l /etc/credstore"),
    Case("its mount hangs", with_(keys=HUNG), "key", Level.FAIL, "mount", "cat /proc/mounts"),
    # -- the shell
    Case("a profile", with_(root=False, shell=Shell(variables=("AWS_PROFILE",))), "shell", Level.WARN, "before they ask the agent", "unset AWS_PROFILE"),
    Case("keys of one's own", with_(root=False, shell=Shell(files=("/home/a b/.aws/credentials",))),
         "shell", Level.WARN, "/home/a b/.aws/credentials", "mv '/home/a b/.aws/credentials' '/home/a b/.aws/credentials.away'"),
    Case("a proxy", with_(root=False, shell=Shell(proxies=("http_proxy",))), "shell", Level.WARN, "ask a proxy for 169.254.169.254", "export NO_PROXY="),
    # -- the identity
    Case("ended", with_(control=answered(clouds={"aws": cloud(state="ended", why="the lease has ended")})),
         "identity", Level.FAIL, "lease has ended", "credential-agent status"),
    Case("ends soon", with_(control=answered(clouds={"aws": cloud(horizon="2030-01-01T00:10:00Z")})),
         "identity", Level.WARN, "10 min", "credential-agent refresh"),
    Case("renewal denied", with_(control=answered(credentials=[
            {**RENEWED, "last_failure": {"code": "AccessDenied", "reason": "no", "permanent": True}}])),
         "identity", Level.FAIL, "AccessDenied", "credential-agent refresh"),
    *(Case(f"renewal fails: {code}", with_(control=answered(credentials=[
            {**RENEWED, "last_failure": {"code": code, "reason": "no", "permanent": permanent}}])),
         "identity", Level.FAIL if permanent else Level.WARN, cause, command)
      for code, permanent, cause, command in (
          ("ExpiredToken", True, "a new bundle must come", "credential-agent refresh"),
          ("invalid_grant", True, "a new bundle must come", "credential-agent refresh"),
          ("SignatureDoesNotMatch", True, "is a clock wrong", "timedatectl"),
          ("RegionDisabledException", True, "aws.region", "config show aws"),
          ("Throttling", False, "tried again", "journalctl"),
      )),
    Case("variables alone", with_(control=answered(sticky=[], clouds={"aws": cloud(state="absent", origin="none", identity=None, why="no grant")})),
         "identity", Level.FAIL, "brings variables, and no identity", "credential-agent status"),
    # -- the redirect
    Case("flushed", with_(arrival=led(table=False)), "redirect", Level.FAIL, "not in the kernel", "restart credential-agent-redirect"),
    Case("closed", with_(arrival=led(state="closed", why="no user")), "redirect", Level.FAIL, "no user", "redirect apply"),
    Case("filtered", with_(arrival=led(asked={"uid 1000": "timeout"})), "redirect", Level.FAIL, "something filters it", "nft list ruleset"),
    Case("no answer, and no agent", with_(arrival=led(asked={"uid 1000": "timeout"}), control=silent()),
         "redirect", Level.FAIL, "nobody answers", "systemctl restart credential-agent"),
    Case("stopped by hand", with_(arrival=led(state="closed", why="workers are refused: credential-agent-redirect was stopped")),
         "redirect", Level.FAIL, "workers are refused: credential-agent-redirect was stopped", "systemctl start credential-agent-redirect"),
    Case("taken away by hand", with_(arrival=Arrival(expected=False), units=beside("credential-agent-redirect.service", active="inactive", enabled="enabled")),
         "redirect", Level.FAIL, "not led, and so are the machine", "systemctl start credential-agent-redirect"),
    Case("no worker at all", with_(root=False, arrival=led(asked={"uid 1001": "http 401"})), "redirect", Level.WARN, "uid 1001 is no worker here", "sudo credential-agent config show redirect"),
    Case("no loopback", with_(arrival=led(loopback=False)), "redirect", Level.FAIL, "loopback interface is down", "ip link set lo up"),
    Case("no route", with_(arrival=led(state="unanswered", why="no route: a machine needs one")), "redirect", Level.FAIL, "get no answer: no route", "ip route show"),
    Case("what answers is stopped", with_(arrival=led(asked={"uid 1000": "timeout"}), units=beside("credential-agent-serve.service", stopped=(7,))),
         "redirect", Level.FAIL, "what answers workers does not", "systemctl restart credential-agent-serve"),
    Case("filtered, as a worker sees it", with_(arrival=led(asked={"uid 1000": "timeout"}), control=Control(state="denied", path="/x", why="no"),
                                                units=unit(active="active", sub="running", result="success")),
         "redirect", Level.FAIL, "something filters it", "nft list ruleset"),
    Case("the look hangs", with_(arrival=HUNG), "redirect", Level.WARN, "not known", "credential-agent redirect check"),
    Case("unanswered", with_(arrival=led(state="unanswered", why="timeout")), "redirect", Level.FAIL, "nobody answers", "restart credential-agent"),
    Case("astray", with_(arrival=led(state="astray", why="http 200")), "redirect", Level.FAIL, "astray", "restart credential-agent-redirect"),
    Case("nobody holds the rules", with_(arrival=led(state="unknown", why="not running")), "redirect", Level.FAIL, "not running", "restart credential-agent-redirect"),
    Case("another answers", with_(arrival=led(asked={"uid 1000": "http 200"})), "redirect", Level.FAIL, "another service", "restart credential-agent-redirect"),
    Case("an unknown user", with_(arrival=led(strangers=("bob",), notes=("redirect.users: no user 'bob' yet",))),
         "redirect", Level.WARN, "bob", "getent passwd bob"),
    Case("a note", with_(arrival=led(notes=("redirect.units: x.slice has no gate",))), "redirect", Level.WARN, "gate", "redirect apply"),
    Case("the metadata service hangs", with_(metadata=HUNG), "metadata", Level.FAIL, "does not answer", "ip route get"),
    Case("the clouds hang", with_(clouds=HUNG), "clouds", Level.WARN, "not known", "cat /etc/resolv.conf"),
    # -- whom it believes, and what is refused
    Case("no signer", with_(control=answered(signers=[])), "signers", Level.FAIL, "nobody is believed", "config show signers"),
    Case("no signer, no daemon", with_(control=silent(), bundles=Bundles()), "signers", Level.FAIL, "nobody is believed", "config show signers"),
    *(Case(f"refused: {code}", with_(bundles=found(code=code, why="why it is so", recipients=("OTHER",))),
           "bundle", Level.FAIL, cause, command)
      for code, cause, command in (
          ("recipient", "this worker's keys: THUMB; it is sealed to OTHER", "credential-agent pubkey"),
          ("signer", "believed are: SIGNER for https://control.example", "config show signers"),
          ("issuer", "believed are: SIGNER", "config show signers"),
          ("audience", "answers to: urn:credbundle:key:THUMB", "config show identity"),
          ("expired", "clock is right: its sender must seal another", "credential-agent refresh"),
          ("not-yet-valid", "must seal another, and look at its own clock", "credential-agent refresh"),
          ("lease", "why it is so", "credential-agent refresh"),
          ("encoding", "why it is so", "credential-agent inspect /run/bundle"),
      )),
    *(Case(f"refused: {code}, and nobody knows the time", with_(bundles=found(code=code, why="why it is so"), **TIMELESS),
           "bundle", Level.FAIL, "why it is so", "timedatectl") for code in ("expired", "not-yet-valid", "far-future")),
    Case("a longer lease than its signer may give", with_(bundles=found(code="lease", why="signer s may lease for 10 min at most")),
         "bundle", Level.FAIL, "may lease for", "config show signers"),
    Case("a withdrawal", with_(bundles=found(withdraws=True), control=answered(bundle=None)), "bundle", Level.OK, "takes back", ""),
    Case("refused at a push", with_(control=answered(bundle=None, last_refusal=REFUSAL)), "bundle", Level.FAIL, "from push at 2030", "config show signers"),
    Case("refused, another in force", with_(control=answered(last_refusal=REFUSAL)), "bundle", Level.WARN, "from push at 2030", "config show signers"),
    Case("the file is older", with_(bundles=found(name="", seq=3)), "bundle", Level.FAIL, "rollback", "credential-agent status"),
    Case("not taken yet", with_(bundles=found(seq=9)), "bundle", Level.WARN, "has not yet", "credential-agent refresh"),
    # -- sources
    Case("unreachable", with_(bundles=found(name="https", path="", state="broken", why="the name in https://x does not resolve")),
         "source", Level.FAIL, "does not resolve", "cat /etc/resolv.conf"),
    Case("a private CA", with_(bundles=found(name="https", path="", state="broken", why="the certificate of https://x does not verify")),
         "source", Level.FAIL, "an authority of its own (sources.ca_file)", "config show sources"),
    Case("a certificate, and nobody knows the time", with_(bundles=found(name="https", path="", state="broken", why="the certificate of x is over"), **TIMELESS),
         "source", Level.FAIL, "certificate", "timedatectl"),
    Case("gone for good", with_(bundles=found(path="", state="none"), control=answered(bundle=None, sources={"file": "https://x answered 410"})),
         "source", Level.WARN, "the agent says: https://x answered 410", "credential-agent refresh"),
    Case("a hint", with_(bundles=found(name="https", path="", state="broken", why="https://x answered 403", hint="a signed URL ends")),
         "source", Level.FAIL, "answered 403 (a signed URL ends)", "config show sources"),
    Case("silent", with_(bundles=found(name="https", path="", state="broken", why="no answer within 1.4 s")),
         "source", Level.FAIL, "no answer", "config show sources"),
    Case("encoded too often", with_(bundles=found(state="broken", why="/run/bundle: something here looks like a bundle and cannot be read")),
         "source", Level.FAIL, "looks like a bundle", "credential-agent inspect /run/bundle"),
    Case("never seen", with_(control=answered(bundle=None), bundles=found(state="none")), "source", Level.WARN, "no bundle was put there", "ls -l /run/bundle"),
    Case("unreadable for the service", with_(bundles=found(state="broken", why="/run/bundle: cannot be read: permission denied")),
         "source", Level.FAIL, "permission denied", "ls -l /run/bundle"),
    # -- metadata, clouds, time
    Case("a proxy", with_(metadata=service(state="between")), "metadata", Level.FAIL, "a proxy say", "ip route get"),
    Case("switched off", with_(metadata=service(state="disabled")), "metadata", Level.FAIL, "switched off", "--http-endpoint enabled"),
    Case("hop limit", with_(metadata=service(state="hop-limit")), "metadata", Level.FAIL, "hop limit", "--http-put-response-hop-limit 2"),
    Case("no role", with_(metadata=service(state="no-identity", why="no role is attached")), "metadata", Level.WARN, "no role", "credential-agent status"),
    Case("silent", with_(metadata=service(state="silent", why="timeout")), "metadata", Level.FAIL, "does not answer", "ip route get"),
    Case("another answers", with_(metadata=service(state="absent", why="status 200")), "metadata", Level.FAIL, "no such service", "ip route get"),
    *(Case(f"STS: {kind}", with_(clouds=endpoint(why="no answer", kind=kind), control=answered(credentials=[RENEWED])), "clouds", Level.FAIL, cause, command)
      for kind, cause, command in (
          ("name", "name server", "getent ahosts sts."), ("tls", "upstream.ca_file", "timedatectl"),
          ("proxy", "upstream.proxy", "config show upstream"), ("timeout", "firewall", "ip route show"), ("network", "no answer", "ip route show"),
      )),
    Case("STS, nobody knows whether it matters", with_(clouds=endpoint(why="no answer", kind="timeout"), control=silent()),
         "clouds", Level.WARN, "no answer", "ip route show"),
    Case("far off", with_(metadata=service(state="ok", ahead_seconds=-3600.0)), "clock", Level.FAIL, "1 h ahead of ec2", "timedatectl"),
    Case("somewhat off", with_(clouds=endpoint(ahead_seconds=90.0)), "clock", Level.WARN, "1 min 30 s behind", "timedatectl"),
    Case("the agent corrects it", with_(control=answered(clock={"wall_error_seconds": 7200.0})), "clock", Level.FAIL, "2 h", "timedatectl"),
    Case("nobody keeps it", with_(clock=Clock(synchronised=False), metadata=Metadata(platform="other"), clouds=endpoint(why="x", kind="name")),
         "clock", Level.WARN, "no NTP client", "timedatectl"),
    # -- the machine
    Case("taken", with_(listeners=Listeners(listeners=(Listener(address="127.0.0.1:16925", taken=True, pid=9, program="nc", ours=False),))),
         "port", Level.FAIL, "nc, process 9", "-p 9"),
    Case("nobody listens", with_(listeners=Listeners(listeners=(Listener(address="127.0.0.1:16925", taken=False),))),
         "port", Level.FAIL, "nobody listens", "restart credential-agent.socket"),
    Case("nobody listens on IPv6", with_(listeners=Listeners(listeners=(Listener(address="[::1]:16925", taken=False, unit="credential-agent-ipv6.socket"),))),
         "port", Level.FAIL, "nobody listens", "restart credential-agent-ipv6.socket"),
    Case("full", with_(places=place(free_bytes=4096)), "disk", Level.FAIL, "full", "df -h"),
    Case("no inodes", with_(places=place(free_files=0)), "disk", Level.FAIL, "inodes", "df -i"),
    Case("read-only", with_(places=place(read_only=True, may_write=False)), "disk", Level.FAIL, "read-only", "findmnt"),
    Case("another's", with_(places=place(may_write=False, owner="root")), "disk", Level.FAIL, "belongs to root", "chown -R"),
    Case("gone", with_(places=place(there=False)), "disk", Level.FAIL, "not there", "install -d"),
    Case("hangs", with_(places=HUNG), "disk", Level.FAIL, "does not answer", "cat /proc/mounts"),
    Case("not written", with_(control=answered(memory_unwritten=True)), "disk", Level.FAIL, "would forget", "df -h"),
    Case("gone back in time", with_(control=answered(without={"state.directory": "it may have gone back in time: ..."})),
         "disk", Level.WARN, "gone back in time", "credential-agent status"),
    Case("none left", with_(memory=Memory(total=1 << 30, available=8 << 20)), "memory", Level.WARN, "nearly out", "ps -eo"),
    Case("its share", with_(memory=Memory(total=8 << 30, available=4 << 30, used=500 << 20, limit=512 << 20)), "memory", Level.WARN, "its limit", "MemoryMax"),
    Case("was ended for it", with_(memory=Memory(total=8 << 30, available=4 << 30, killed=2)), "memory", Level.WARN, "2 times", "journalctl"),
    Case("everything waits", with_(memory=Memory(total=8 << 30, available=4 << 30, pressure=40.0)), "memory", Level.WARN, "40 %", "ps -eo"),
    Case("half upgraded", with_(releases=Releases(ours="0.1.0", installed="r2", running="r1")), "version", Level.WARN, "r1 runs, r2", "systemctl restart"),
    Case("a package is gone", with_(releases=Releases(ours="0.1.0", missing=("botocore",))), "version", Level.FAIL, "botocore is missing", "ls -l /opt"),
    Case("an older agent", with_(control=answered(version="0.0.9")), "version", Level.WARN, "0.0.9 runs", "systemctl restart"),
]  # fmt: skip


def of(case: Case) -> list[Finding]:
    return [one for one in diagnose(case.facts) if one.check == case.check and one.level is case.level]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.name}")
def test_each_failure_is_told_with_its_cause_and_the_next_command(case: Case) -> None:
    """What is broken is found by the check whose it is, at its level, with the cause and what to type."""
    said = [(one.said, one.next or "") for one in of(case)]
    assert [line for line in said if case.cause in line[0] and case.next in line[1]], said


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.name}")
def test_every_next_command_can_be_typed(case: Case) -> None:
    """It is a program of a worker's machine, or one of ours whose options are right; nothing in it is left to fill in."""
    programs = {
        "systemctl", "systemd-sysusers", "systemd-analyze", "journalctl", "chown", "chmod", "chgrp", "ls", "cat", "df", "kill",
        "ip", "sudo", "credential-agent", "timedatectl", "getent", "findmnt", "ps", "install", "aws",
        "unset", "export", "mv", "nft",
    }  # fmt: skip
    for one in diagnose(case.facts):
        for command in (one.next or "true").split(" && "):
            words = shlex.split(command)
            words = words[1:] if words[0] == "sudo" else words
            assert words[0] in programs | {"true"}, command
            assert not re.search(r"\.\.\.|<|\bUSER\b|\bFILE\b", command), command
            if words[0] == "credential-agent":
                typed(words[1:])
            if words[0] == "systemctl":
                assert cannot(command) is None, command


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.name}")
@pytest.mark.parametrize("units", [Units(present=False), Units(present=True)], ids=["no systemd", "no unit"])
def test_nobody_is_sent_to_a_systemd_that_does_not_keep_the_agent(case: Case, units: Units) -> None:
    """In a container, or where somebody else starts it: every finding has a command, and none asks systemd."""
    for one in diagnose(msgspec.structs.replace(case.facts, units=units)):
        assert one.next or one.level in {Level.OK, Level.SKIPPED}
        assert not re.search(r"\b(systemctl|journalctl|systemd-)", one.next or ""), one


def typed(words: list[str]) -> None:
    """Parse a command line of ours, and run nothing. Raises click.UsageError."""
    context = click.Context(cli)
    name, command, rest = cli.resolve_command(context, words)
    assert command is not None
    inside = command.make_context(name, rest, parent=context)
    while isinstance(inside.command, click.Group):
        name, command, rest = inside.command.resolve_command(inside, [*inside._protected_args, *inside.args])
        assert command is not None
        inside = command.make_context(name, rest, parent=inside)


def test_a_healthy_worker_has_nothing_to_mend() -> None:
    """Nothing is said to be wrong where nothing is, each check says something, and no command is proposed."""
    said = diagnose(healthy())
    assert {one.level for one in said} <= {Level.OK}
    assert [one for one in said if one.next] == []
    assert {one.check for one in said} == set(CHECKS)
    assert not failed(said)


@pytest.mark.parametrize("name", sorted(set(Facts.__struct_fields__) - {"root", "seconds", "config_path"}))
def test_a_look_without_an_answer_breaks_no_check(name: str) -> None:
    """A probe that failed, or hung, leaves every other finding as it is, and its own checks still say something."""
    for why in (Unknown(why="not allowed"), HUNG):
        said = diagnose(with_(**{name: why}))
        assert {one.check for one in said} == set(CHECKS)
        assert all(one.next for one in said if one.level in {Level.FAIL, Level.WARN})


@pytest.mark.parametrize(
    ("state", "level"), [("ok", Level.OK), ("starting", Level.SKIPPED), ("it does not resolve", Level.FAIL)]
)
def test_of_a_source_that_may_not_be_looked_at_the_agent_s_word_is_told(state: str, level: Level) -> None:
    """Who may not read it himself hears what the agent says; one that it has only begun with is no failure."""
    facts = with_(bundles=Unknown(why="not allowed"), control=answered(sources={"file": state}))
    (one,) = [finding for finding in diagnose(facts) if finding.check == "source"]
    assert (one.level, one.about) == (level, "file")


def test_what_nobody_needs_is_no_failure() -> None:
    """A cloud at which nothing is renewed, a refusal that a key of the running agent's explains: told, and not blamed."""
    unneeded = with_(clouds=endpoint(why="no answer", kind="timeout"))
    assert [one.level for one in diagnose(unneeded) if one.check == "clouds"] == [Level.SKIPPED]
    ephemeral = with_(bundles=found(code="recipient", why="none of ours"))
    assert [one.level for one in diagnose(ephemeral) if one.check == "bundle"] == [Level.SKIPPED]


def test_a_cloud_is_needed_by_what_is_renewed_there() -> None:
    """Of each kind of credential that the agent can hold, as its own status names it: the machine's own needs no cloud."""
    own = Store(verdict.Policy(), verdict.Memory("i-1"), START, random.Random(7)).slots()
    kinds = {one.type for one in own} | {str(kind.__struct_config__.tag) for kind in get_args(Grant)}

    def level(kind: str) -> Level:
        document = answered(credentials=[{**RENEWED, "type": kind}])
        (said,) = [
            one
            for one in diagnose(with_(clouds=endpoint(why="no answer", kind="timeout"), control=document))
            if one.check == "clouds"
        ]
        return said.level

    assert len(own) == 2
    elsewhere = {"aws-session", "gcp-token", "env", "http-broker", "instance"}
    assert {kind for kind in kinds if level(kind) is Level.SKIPPED} == elsewhere


def test_a_credential_of_systemds_is_the_services_to_see() -> None:
    """That root's look finds none is no warning: the directory is the service's, and only there while it runs."""
    facts = with_(
        configuration=Configuration(path=PATH, told=("key x: not given to this machine",)),
        keys=key_file(state="elsewhere", name="x", why="systemd credential x, for the service alone"),
    )
    assert not [one for one in diagnose(facts) if one.level in {Level.FAIL, Level.WARN}]


def test_a_worker_learns_what_it_may() -> None:
    """From the redacted document of the couriers' socket: whose identity, until when, and who would see more."""
    now = status()["now"]
    document = {
        "ver": 1, "version": "0.1.0", "now": now, "bundle": None, "refused": None, "keys": [], "signers": [],
        "clouds": {"aws": {"state": "live", "origin": "bundle", "identity": "user", "until": "2030-01-01T12:00:00Z", "at_the_end": "x"}},
    }  # fmt: skip
    denied = Unknown(why=f"{PATH}: cannot be read: permission denied")
    facts = with_(
        root=False,
        control=Control(state="answered", path="/run/courier.sock", document=document, courier=True),
        configuration=denied, keys=denied, bundles=denied, places=denied, metadata=denied, clouds=denied,
        clock=Clock(synchronised=False),
    )  # fmt: skip
    told = diagnose(facts)
    assert [one for one in told if one.level is Level.WARN] == []  # whom the agent believes is not for it to see
    assert [(one.level, one.about) for one in told if one.check == "identity"] == [(Level.OK, "aws")]
    assert {one.next for one in told if one.level is Level.SKIPPED} == {"sudo credential-agent doctor"}
    assert not failed(told)


def test_no_command_needs_a_program_that_a_minimal_image_lacks() -> None:
    """Without sudo whoever is not root is told of `su`; root is told of neither."""
    taken = Listeners(listeners=(Listener(address="127.0.0.1:16925", taken=True, program="x", ours=False),))
    for root, sudo, words in ((True, False, "ss "), (False, True, "sudo ss "), (False, False, "su --command 'ss ")):
        told = diagnose(with_(root=root, sudo=sudo, listeners=taken))
        assert [(one.next or "").startswith(words) for one in told if one.check == "port"] == [True]


@pytest.mark.parametrize(
    ("sticky", "aws", "level"),
    [
        (["aws"], "live", Level.OK),  # where the machine's own is not allowed and bundles bring one cloud's
        (["aws", "gcp"], "live", Level.FAIL),
        ([], "ended", Level.FAIL),
    ],
)
def test_the_cloud_that_no_bundle_brings_is_no_fault(sticky: list[str], aws: str, level: Level) -> None:
    """A cloud that a bundle decided and that is refused is one, and so is every cloud where none is served."""
    clouds = {
        "aws": cloud(state=aws),
        "gcp": cloud(state="ended", origin="closed", identity=None, why="none has arrived"),
    }
    told = diagnose(with_(control=answered(sticky=sticky, clouds=clouds)))
    (found,) = [one for one in told if (one.check, one.about) == ("identity", "gcp")]
    assert (found.level, "none has arrived" in found.said) == (level, True)


def test_where_nothing_ever_came_the_next_command_brings_something() -> None:
    """No key: how to take bundles. A key and no bundle: look for one now. Not root: a command that this user may type."""
    none = {name: cloud(state="absent", origin="none", identity=None, why="no bundle") for name in ("aws", "gcp")}

    def then(*, root: bool = True, **changes: Any) -> set[str | None]:
        told = diagnose(with_(root=root, control=answered(clouds=none, bundle=None, **changes)))
        return {one.next for one in told if one.check == "identity"}

    assert then(keys=[]) == {f"cat {PATH}"}
    assert then() == {"credential-agent refresh"}
    assert then(root=False) == {"credential-agent whoami"}


def test_what_is_not_for_this_user_is_no_mistake_of_the_machine() -> None:
    """Only root and the service may read the configuration; on a sound machine nobody else is told to change its mode."""
    denied = Configuration(
        path=PATH, faults=(Fault(key="", said=f"{PATH}: cannot be read: permission denied", text=True),)
    )
    told = [one for one in diagnose(with_(root=False, configuration=denied)) if one.check == "configuration"]
    assert [(one.level, one.next) for one in told] == [(Level.SKIPPED, "sudo credential-agent doctor")]


def test_every_finding_of_trouble_has_a_command() -> None:
    """No failure and no warning is told without what to type next."""
    for case in CASES:
        assert [one for one in diagnose(case.facts) if one.level in {Level.FAIL, Level.WARN} and not one.next] == []


def test_whom_this_look_could_not_read_it_does_not_contradict() -> None:
    """Where a signer's file is closed to the look, no bundle is said to be refused for its signer: the agent has read it."""
    fault = Fault(key="signers[0].key", said="signers[0].key: permission denied", path="/s/x", blocked="/s")
    facts = with_(
        configuration=Configuration(path=PATH, faults=(fault,)), bundles=found(code="signer", why="no signer is pinned")
    )
    told = [one for one in diagnose(facts) if one.check in {"bundle", "signers"}]
    assert {one.level for one in told} == {Level.SKIPPED, Level.OK}, told
    assert failed(diagnose(facts))


def test_what_needs_root_says_how_to_become_it() -> None:
    """Whoever is not root is told each command that needs it behind `sudo` or `su`, as one command."""
    for case in CASES:
        for one in diagnose(msgspec.structs.replace(case.facts, root=False)):
            words = shlex.split(one.next or "true")
            assert words[0] not in {"systemctl", "chown", "chmod", "chgrp", "kill", "install", "journalctl", "nft"}, one
            assert words[:2] != ["ip", "link"], one
            if words[0] == "sudo" and "&&" in (one.next or ""):
                assert words[1:3] == ["sh", "-c"], one


def test_a_document_of_another_release_costs_no_other_check() -> None:
    """A check that cannot read what the agent says is a warning, and every other check says what it says."""
    odd = answered(clouds=[], clock="x", credentials=7, bundle="y", servers=3)
    told = diagnose(with_(control=odd))
    assert {one.check for one in told} == set(CHECKS)
    assert any("another release" in one.said for one in told if one.check == "identity")


def test_the_worst_comes_first_and_causes_before_consequences() -> None:
    """Findings are in the order of their levels, and within one as the checks are."""
    given = [ok("a", "1"), fail("b", "2", "ls"), warn("c", "3", "ls"), skipped("d", "4"), fail("e", "5", "ls")]
    assert [one.check for one in ordered(given)] == ["b", "e", "c", "d", "a"]
