"""Units, scripts and templates by the tools that evaluate them, without booting anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.system.harness import NICE

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMD = REPOSITORY / "systemd"
PACKER = REPOSITORY / "packer"
SCRIPTS = sorted([*PACKER.rglob("*.sh"), *SYSTEMD.glob("profile.d/*.sh")])
MOST_EXPOSED = {"credential-agent.service": 1.6, "credential-agent-serve.service": 0.5}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def evaluated(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program where theirs will be: verification looks for it."""
    for path in [
        *SYSTEMD.glob("*.service"),
        *SYSTEMD.glob("*.socket"),
        *SYSTEMD.glob("*.slice"),
        *SYSTEMD.glob("*.target"),
    ]:
        text = path.read_text().replace("/opt/credential-agent/bin/credential-agent", "/bin/true")
        text = text.replace("/opt/credential-agent/current/bin/python3", "/bin/true")
        (tmp_path / path.name).write_text(text.replace("RequiresMountsFor=/opt/credential-agent\n", ""))
    return tmp_path


@needs_systemd
def test_systemd_finds_nothing_wrong(units: Path) -> None:
    """Every unit is verified together with those it names, and with each drop-in that its own systemd knows."""
    (version,) = re.findall(r"\Asystemd (\d+)", evaluated("systemd-analyze", "--version").stdout)
    files = sorted(units.iterdir())
    for path in SYSTEMD.glob("drop-ins/*.conf"):
        (unit,) = re.findall(r"\A# For ([a-z.-]+\.service)\b", path.read_text())
        if path.stem != "50-systemd-254" or int(version) >= 254:  # those of older releases are no mistake in later ones
            (units / f"{unit}.d").mkdir(exist_ok=True)
            shutil.copy(path, units / f"{unit}.d")
    said = evaluated("systemd-analyze", "verify", "--man=no", *files)
    ours = [line for line in said.stderr.splitlines() if "credential-agent" in line]
    assert not ours


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd-sysusers")
def test_systemd_makes_the_users(tmp_path: Path) -> None:
    """It takes every line, and makes a user for the agent and one for what answers workers."""
    (tmp_path / "etc").mkdir()
    said = evaluated(
        "systemd-sysusers", f"--root={tmp_path}", "--dry-run", SYSTEMD / "sysusers.d/credential-agent.conf"
    )
    assert said.returncode == 0, said.stderr
    for user in ("credential-agent", "credential-agent-serve"):
        assert re.search(rf"Creating user '?{user}'? ", said.stderr), said.stderr


@needs_systemd
@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_the_services_are_hardly_exposed(units: Path, unit: str) -> None:
    """The exposure that systemd computes stays at 1.6 for the agent, and 0.5 for what parses strangers' bytes, or below."""
    said = evaluated("systemd-analyze", "security", "--offline=yes", units / unit)
    match = re.search(r"exposure level for \S+: ([0-9.]+)", said.stdout)
    assert match is not None, said.stderr
    assert float(match[1]) <= MOST_EXPOSED[unit]


def test_units_use_no_word_that_nft_has_lost() -> None:
    """`nft monitor destroy` is a syntax error from 1.0.7 on: what is watched is said by its kind alone."""
    said = [
        found for path in SYSTEMD.glob("*.service") for found in re.findall(r"nft monitor ([^|\n]*)", path.read_text())
    ]
    assert [words.split()[:1] for words in said if not words.startswith(")")] == [["chains"]]


def test_only_what_loads_rules_has_a_capability() -> None:
    """The daemon's capability set is empty, and no other unit asks for one."""
    sets = {path.name: re.findall(r"^(?:CapabilityBoundingSet|AmbientCapabilities)=(.*)$", path.read_text(), re.MULTILINE)
            for path in SYSTEMD.glob("*.service")}  # fmt: skip
    rules = ("credential-agent-closed.service", "credential-agent-gate@.service", "credential-agent-watch.service")
    # It becomes the worker as which it asks.
    holds = {"credential-agent-redirect.service": ["CAP_NET_ADMIN CAP_SETUID CAP_SETGID"]}
    assert sets == {
        "credential-agent.service": ["", ""],
        "credential-agent-serve.service": ["", ""],
        "credential-agent-hold.service": [""],
        "credential-agent-again@.service": [""],
        "credential-agent-stopped.service": [""],
        **holds,
        **{name: ["CAP_NET_ADMIN"] for name in rules},
    }


def test_the_lock_asks_for_no_full_version_of_python() -> None:
    """Ubuntu 22.04 has Python 3.11.0rc1, and a pip to which a release candidate is less than no version."""
    assert "python_full_version" not in (REPOSITORY / "requirements/runtime.txt").read_text()


def test_units_and_code_agree_on_addresses() -> None:
    """The socket unit listens where the rules lead and the environment file points."""
    from agent import config
    from agent.host import aliases

    listened = set(lines("credential-agent.socket", "ListenStream"))
    listened6 = set(lines("credential-agent-ipv6.socket", "ListenStream"))
    host, port = config.host_port(config.Listen().http[0])
    assert listened == {f"{host}:{port}", f"{aliases.ALIAS4}:{port}"}
    # Apart: what a machine without IPv6 cannot bind would fail the rest of its unit.
    assert listened6 == {f"[::1]:{port}", f"[{aliases.ALIAS6}]:{port}"}
    control = (SYSTEMD / "credential-agent-control.socket").read_text()
    # Of root's directory; the name that everybody knows leads there.
    assert f"Symlinks={config.Listen().control}\n" in control
    assert "ListenStream=/run/credential-agent-control.sock\n" in control
    couriers = (SYSTEMD / "credential-agent-courier.socket").read_text()
    assert f"Symlinks={Path(config.Listen().control).with_name('courier.sock')}\n" in couriers
    # For the owners of connections, which no service can make: a former agent's, behind the one that it would take.
    assert control.index("ListenStream=") < control.index("ListenNetlink=inet-diag\n")


def test_units_and_code_agree_on_the_last_resort() -> None:
    """What is added where nftables cannot be used is what is taken back, for every metadata address."""
    from agent.host import nft, unroutable

    unit = (SYSTEMD / "credential-agent-closed.service").read_text()
    addresses = re.search(r"for address in (.*); do", unit)
    assert addresses is not None
    assert set(addresses.group(1).split()) == {address for family in nft.METADATA.values() for address in family}
    assert f"for pref in {' '.join(map(str, unroutable.PREFERENCES))}; do" in unit
    assert set(re.findall(r"rule add pref (\d+)", unit)) == set(map(str, unroutable.PREFERENCES))
    assert f"/{unroutable.MARK}\n" in unit


def test_the_configuration_that_is_installed_is_acceptable() -> None:
    """The file that the install script puts in place is one that the agent takes."""
    from agent import config

    assert config.load(SYSTEMD / "config.toml").environment.group == "credential-workers"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    """Shells read them, and shellcheck, where it is, finds nothing."""
    shell = "bash" if script.read_text().startswith("#!/usr/bin/env bash") else "sh"
    assert evaluated(shell, "-n", script).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("the rest needs shellcheck (apt-get install shellcheck)")
    said = evaluated("shellcheck", f"--shell={shell}", "--exclude=SC1091", script)
    assert said.returncode == 0, said.stdout


def test_the_install_script_says_what_it_takes() -> None:
    """Help is the head of the script, and every option that is parsed is in it."""
    script = PACKER / "install.sh"
    said = evaluated("bash", script, "--help").stdout
    parsed = set(re.findall(r"(?<![\w-])--[a-z-]+(?=\)|\s\|)", script.read_text().split("while [ $# -gt 0 ]")[1]))
    assert parsed
    assert {option for option in parsed if option not in said} <= {"--help"}


def test_an_unknown_option_installs_nothing() -> None:
    """A typing mistake ends before anything is touched."""
    said = evaluated("bash", PACKER / "install.sh", "--no-strat")
    assert said.returncode == 1
    assert "--no-strat: unknown option" in said.stderr


def test_who_wants_it_gone_gets_no_installation() -> None:
    """`--purge` without `uninstall` ends before anything is touched, and says what to type."""
    said = evaluated("bash", PACKER / "install.sh", "--purge")
    assert said.returncode == 1
    assert "install.sh uninstall --purge" in said.stderr


def function(name: str) -> str:
    """One of the install script's."""
    text = (PACKER / "install.sh").read_text()
    (found,) = re.findall(rf"^{name}\(\) \{{.*?^\}}$", text, re.DOTALL | re.MULTILINE)
    return str(found)


HOSTS = {
    "a file": "true",
    "a link": 'mv "$1" "$1.real" && ln -s "$(basename "$1").real" "$1"',
    "a mount": 'cp "$1" "$1.mounted" && mount --bind "$1.mounted" "$1"',
    "a mount that cannot be written": 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"',
}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file in a namespace of its own")
@pytest.mark.parametrize("how", HOSTS)
def test_the_names_of_others_stay_whatever_happens_to_ours(tmp_path: Path, how: str) -> None:
    """/etc/hosts is not emptied to be written anew, which a kill would leave so; what cannot be changed ends nothing."""
    space = ["unshare", "--mount"] if "mount" in how else []
    (tried := tmp_path / "tried").touch()
    if space and evaluated(*space, "mount", "--bind", tried, tried).returncode:
        pytest.skip("needs to make mounts in a namespace of its own: this machine lets root make none")
    (hosts := tmp_path / "hosts").write_text("127.0.0.1 localhost\n169.254.169.254 x # credential-agent\n")
    hosts.chmod(0o640)
    before = hosts.read_text()
    program = f"""
    say() {{ echo "$*" >&2; }}
    {function("replace_hosts").replace("/etc/hosts", str(hosts))}
    set -euo pipefail
    {HOSTS[how]}
    replace_hosts sed '/# credential-agent$/d' {hosts}
    cat {hosts} && stat -Lc %a {hosts}
    """
    with hosts.open() as former:
        done = evaluated(*space, "bash", "-c", program, "bash", hosts)
        assert former.read() == before
    cannot = how.endswith("written")
    assert (done.returncode, "cannot be written" in done.stderr) == (0, cannot), done
    assert done.stdout == (before if cannot else "127.0.0.1 localhost\n") + "640\n"
    assert hosts.is_symlink() is (how == "a link")
    assert not list(tmp_path.glob("*.credential-agent"))


@pytest.mark.parametrize(
    ("fails", "words", "status", "said"),
    [
        (0, "", 0, ""),
        (0, "W: an index is old", 0, "W: an index is old"),
        (3, "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7", 0, ""),
        (1, "E: The repository is not signed", 1, "E: The repository is not signed"),
    ],
)
def test_who_updates_the_lists_just_then_is_waited_for(
    tmp_path: Path, *, fails: int, words: str, status: int, said: str
) -> None:
    """A machine updates itself at its first boot, when cloud-init installs; what else goes wrong is said and ends it."""
    program = f"""
    die() {{ echo "$*" >&2; exit 1; }}
    sleep() {{ echo slept >>{tmp_path}/slept; }}
    apt-get() {{
      echo "$*" >>{tmp_path}/asked
      [ "$(wc -l <{tmp_path}/asked)" -le {fails} ] && echo '{words}' >&2 && return 100
      [ {fails} -gt 0 ] || printf '{words}'
    }}
    {function("update_lists")}
    set -euo pipefail
    update_lists
    """
    done = evaluated("bash", "-c", program)
    assert (done.returncode, said in done.stderr) == (status, True), done
    waited = fails if status == 0 else 0
    assert (tmp_path / "asked").read_text() == "update -qq\n" * (waited + 1)
    assert (tmp_path / "slept").exists() is (waited > 0)


def lines(name: str, key: str) -> list[str]:
    """The values of a setting in one of our files, in their order."""
    return re.findall(rf"^{key}=(.*)$", (SYSTEMD / name).read_text(), re.MULTILINE)


def test_each_group_has_a_way_of_its_own() -> None:
    """Workers, operators, scrapers and the service: each has its own files, and no file or socket is another group's."""
    made = (SYSTEMD / "sysusers.d/credential-agent.conf").read_text()
    assert re.findall(r"^g (\S+)", made, re.MULTILINE) == [
        "credential-workers",
        "credential-operators",
        "credential-metrics",
    ]
    # The agent is in two of them, to give files to each. Nobody is in the agent's.
    assert re.findall(r"^m credential-agent (.*)$", made, re.MULTILINE) == ["credential-workers", "credential-metrics"]
    assert lines("credential-agent.service", "SupplementaryGroups") == ["credential-workers credential-metrics"]
    assert lines("credential-agent-control.socket", "SocketGroup") == ["credential-operators"]
    assert lines("credential-agent-control.socket", "SocketMode") == ["0660"]
    assert lines("credential-agent-courier.socket", "SocketGroup") == ["credential-workers"]
    assert lines("credential-agent-courier.socket", "SocketMode") == ["0660"]
    assert lines("credential-agent.service", "Group") == ["credential-agent"]


def test_root_runs_and_reads_nothing_that_the_agent_can_write() -> None:
    """No unit or script of ours that runs as root sources, executes or takes variables from the agent's directories."""
    writable = ("/run/credential-agent/", "/var/lib/credential-agent")
    for path in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.socket"), *SYSTEMD.glob("drop-ins/*")]:
        for key in ("EnvironmentFile", "ExecStart", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop",
                    "ExecStopPost", "LoadCredential", "ListenStream", "PIDFile"):  # fmt: skip
            for value in re.findall(rf"^{key}=(.*)$", path.read_text(), re.MULTILINE):
                assert not any(name in value for name in writable), f"{path.name}: {key}={value}"
    for script in SCRIPTS:
        sourced = re.findall(r"^\s*(?:\.|source|eval)\s+(.*)$", script.read_text(), re.MULTILINE)
        assert not sourced, f"{script.name}: {sourced}"
    for example in SYSTEMD.glob("examples/*.service"):
        text = example.read_text()
        if "EnvironmentFile" in text:
            user = re.search(r"^User=(.+)$", text, re.MULTILINE)
            assert user is not None, example.name
            assert user[1] not in {"root", "0"}, example.name


def test_nothing_but_the_program_is_executable_in_the_sandbox() -> None:
    """Directories of libraries and our own are; no directory of tools, and none that the agent can write."""
    (closed,) = lines("credential-agent.service", "NoExecPaths")
    assert {path.lstrip("-") for path in closed.split()} == {
        "/", "/dev/shm", "/run", "/run/credential-agent", "/tmp", "/var/tmp", "/var/lib/credential-agent"
    }  # fmt: skip
    (executable,) = lines("credential-agent.service", "ExecPaths")
    assert {path.lstrip("-") for path in executable.split()} == {
        "/opt/credential-agent", "/usr/lib", "/usr/lib64", "/lib", "/lib64"
    }  # fmt: skip


def test_who_answers_workers_has_their_sockets_and_who_has_the_keys_has_none() -> None:
    """The workers' sockets go to the one, that of operators and couriers to the other, which may bind nothing."""
    for unit in ("credential-agent.socket", "credential-agent-ipv6.socket"):
        assert lines(unit, "Service") == ["credential-agent-serve.service"]
        assert f" {unit} " in f" {lines('credential-agent-serve.service', 'Sockets')[0]} "
        assert unit not in lines("credential-agent.service", "Sockets")[0].split()
    assert lines("credential-agent.service", "SocketBindDeny") == ["any"]
    assert lines("credential-agent-serve.service", "RestrictAddressFamilies") == ["AF_UNIX"]
    assert lines("credential-agent-serve.service", "PrivateNetwork") == ["yes"]
    # The way between the two: of a user whose only member is the agent.
    assert lines("credential-agent-serve.socket", "SocketMode") == ["0600"]
    assert lines("credential-agent-serve.socket", "SocketUser") == lines("credential-agent.service", "User")
    (path,) = lines("credential-agent-serve.socket", "ListenSequentialPacket")
    assert f"CREDENTIAL_AGENT_SERVE_SOCKET={path}" in lines("credential-agent.service", "Environment")
    assert path in " ".join(lines("credential-agent-serve.service", "BindReadOnlyPaths"))


def test_no_path_of_the_servers_unit_is_hidden_and_not_executable() -> None:
    """Of one path that is named in both ways systemd takes the second, and what was to be hidden is seen."""
    hidden = {
        path.partition(":")[0]
        for key in ("TemporaryFileSystem", "InaccessiblePaths", "BindReadOnlyPaths")
        for value in lines("credential-agent-serve.service", key)
        for path in value.replace("-/", "/").split()
    }
    assert {"/etc", "/run", "/var", "/opt", "/sys"} <= hidden
    named = {path.lstrip("-") for path in lines("credential-agent-serve.service", "NoExecPaths")[0].split()}
    assert not hidden & named


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_its_memory_is_bounded_and_never_on_a_disk(unit: str) -> None:
    """The agent's unit, and that of what answers workers, have a bound, and neither swap nor core files."""
    (most,) = lines(unit, "MemoryMax")
    assert re.fullmatch(r"[0-9]+M", most)
    assert lines(unit, "MemorySwapMax") == ["0"]
    assert lines(unit, "LimitCORE") == ["0"]
    # Nor may a worker that computes take the time that its answers need: the test of a hostile worker runs under the same.
    assert lines(unit, "Nice") == [str(NICE)]
    assert lines(unit, "CPUWeight") == ["1000"]


def test_only_the_agent_is_spared_when_memory_runs_out() -> None:
    """What a stranger may have made grow goes as soon as any other program."""
    assert -900 < int(lines("credential-agent.service", "OOMScoreAdjust")[0]) < 0
    assert lines("credential-agent-serve.service", "OOMScoreAdjust") == []


@pytest.mark.parametrize("name", ["cleanup", "install", "package", "payload", "provision", "seed", "validate"])
def test_a_script_tells_its_usage_and_does_nothing(name: str, tmp_path: Path) -> None:
    """`--help` is no directory and no reason to begin; nor is another option in a directory's place."""
    for tool in ("dirname", "sed", "uname"):  # whatever else the script called would not be found
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    bash = str(shutil.which("bash"))
    for option, status in (("--help", 0), ("--no-such-option", 1 if name == "install" else 64)):
        done = evaluated(bash, PACKER / f"{name}.sh", option, cwd=tmp_path, env={"PATH": str(tmp_path)})
        assert (done.returncode, "not found" in done.stderr) == (status, False), done.stderr
        assert f"{name}.sh" in done.stdout or status, done.stdout
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("rest", [["--wheelhouse"], ["--wheel-house", "3.11"], ["3.11"]])
def test_the_payload_begins_with_nothing_that_it_cannot_end(rest: list[str], tmp_path: Path) -> None:
    """A word that it does not understand, and an option without its value, are found before anything is fetched or made."""
    done = evaluated(PACKER / "payload.sh", tmp_path / "payload", *rest, env={**os.environ, "PYTHON": "/nonexistent"})
    assert done.returncode == 64, done.stderr
    assert rest[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_payload_needs_no_pip(tmp_path: Path) -> None:
    """Debian's and Ubuntu's python3 has none: the script makes one by the venv module, and goes on to the build.

    Without an index there is no hatchling to build with, which is the first thing that pip misses here.
    """
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    environ = {**os.environ, "PYTHON": str(tmp_path / "bare/bin/python"), "PIP_NO_INDEX": "1", "TMPDIR": str(tmp_path)}
    environ.pop("PIP_FIND_LINKS", None)
    done = subprocess.run(
        [REPOSITORY / "packer/payload.sh", tmp_path / "payload"],
        capture_output=True, text=True, env=environ, check=False,
    )  # fmt: skip
    assert "No module named pip" not in done.stderr
    assert "hatchling" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ or shutil.which("go") is None, reason="needs CI=true and Go")
def test_ci_has_what_makes_the_packages() -> None:
    """A run of CI in which nfpm could not be built fails: it does not pass with the packages' tests skipped."""
    made = REPOSITORY / ".venv-build/nfpm"
    assert made.exists(), "`make build-tools` failed before: build/tools.log says why"
    said = evaluated(made, "--version")
    assert said.returncode == 0, said.stderr


def test_what_was_made_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """Packages and lists of contents lie in one directory, of many versions; each build replaces its own."""
    names = (
        "credential-agent_{}_amd64.deb",
        "credential-agent-{}-1.x86_64.rpm",
        "credential-agent-{}.cdx.json",
    )
    versions = {version: {name.format(version) for name in names} for version in ("1.2.1", "1.2.10", "1.2")}
    for made in versions.values():
        for name in made:
            (tmp_path / name).touch()
    script = (REPOSITORY / "packer/package.sh").read_text()
    (line,) = (line for line in script.splitlines() if line.startswith('rm -f "$target"'))
    subprocess.run(["bash", "-c", line], env={**os.environ, "target": str(tmp_path), "version": "1.2.1"}, check=True)
    assert {path.name for path in tmp_path.iterdir()} == versions["1.2.10"] | versions["1.2"]
