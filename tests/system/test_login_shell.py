"""What a login shell takes from a file that belongs to the agent's user: pointers, as text, for workers alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.host import envfile

SCRIPT = Path(__file__).resolve().parents[2] / "systemd/profile.d/credential-agent.sh"
SHELLS = [shell for shell in (["dash"], ["bash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
POINTERS = {
    **envfile.pointers(address="127.0.0.1:16925", aws=True, gcp=True, token_file="/run/credential-agent/token"),
    "AWS_REGION": "eu-west-1",
}
WORKER = "staff credential-workers adm"

pytestmark = pytest.mark.parametrize("shell", SHELLS, ids=" ".join)


class Login:
    """A user's login shell; who the user is, is what a false `id` says."""

    def __init__(self, place: Path) -> None:
        self.file = place / "env"
        self.place = place
        (place / "bin").mkdir()
        fake = place / "bin/id"
        fake.write_text(
            '#!/bin/sh\ncase $1 in -u) echo "$UID_";; -ru) echo "${REAL_:-$UID_}";; -Gn) echo "$GROUPS_";; esac\n'
        )
        fake.chmod(0o755)
        self.script = place / "profile.sh"
        self.script.write_text(SCRIPT.read_text().replace("/run/credential-agent/env", str(self.file)))

    def write(self, variables: dict[str, str]) -> None:
        self.file.write_bytes(envfile.render_systemd(variables))

    def __call__(
        self,
        shell: list[str],
        *,
        uid: int = 1000,
        real: int | None = None,
        groups: str = WORKER,
        before: str = "",
        **environ: str,
    ) -> dict[str, str]:
        """The environment of a program that is started from the shell; it must say nothing and come up."""
        bare = {"PATH": f"{self.place}/bin:/usr/bin:/bin", "UID_": str(uid), "GROUPS_": groups, **environ}
        if real is not None:
            bare["REAL_"] = str(real)
        done = subprocess.run(
            [*shell, "-c", f"{before}\n. {self.script}\n/usr/bin/env -0\n/bin/echo -n came-up=yes"],
            env=bare,
            cwd=self.place,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.stderr == b""
        assert done.returncode == 0
        found = dict(part.decode(errors="replace").split("=", 1) for part in done.stdout.split(b"\0"))
        assert found["came-up"] == "yes"
        return {
            name: value
            for name, value in found.items()
            if name not in {*bare, "PWD", "_", "SHLVL", "OLDPWD", "came-up"}
        } | {name: value for name, value in found.items() if name in environ}


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_a_worker_is_led_to_the_agent(login: Login, shell: list[str]) -> None:
    """A member of the group has every pointer as the agent wrote it, and nothing else."""
    login.write(POINTERS)
    assert login(shell) == POINTERS


@pytest.mark.parametrize(
    ("uid", "real", "groups"),
    [(0, 0, WORKER), (0, 1000, WORKER), (1000, 0, WORKER), (1000, None, "staff"), (1000, None, "xcredential-workers"),
     (1000, None, "credential-workers-not"), (1000, None, "credential-agent credential-operators"), (1000, None, "")],
)  # fmt: skip
def test_nobody_else_takes_anything(login: Login, shell: list[str], uid: int, real: int | None, groups: str) -> None:
    """Root never does, by its real or its effective id and whatever groups it has; nor who is not in the group."""
    login.write(POINTERS)
    assert login(shell, uid=uid, real=real, groups=groups) == {}


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "PATH", "BASH_ENV", "ENV", "PROMPT_COMMAND", "PS4", "IFS", "PYTHONSTARTUP", "AWS_CONFIG_FILE",
     "AWS_CA_BUNDLE", "HTTPS_PROXY", "GOOGLE_APPLICATION_CREDENTIALS", "DASK_DISTRIBUTED__WORKER__PRELOAD", "LESSOPEN",
     "EDITOR", "HOME", "MYAPP_TOKEN", "AWS_ACCESS_KEY_ID"],
)  # fmt: skip
def test_only_pointers_are_taken(login: Login, shell: list[str], name: str) -> None:
    """A name that is not one of the agent's pointers is passed over, and the rest is taken."""
    login.write({name: "/tmp/evil.so", **POINTERS})
    found = login(shell)
    assert {k: v for k, v in found.items() if k != name} == POINTERS
    assert found.get(name) != "/tmp/evil.so"


HOSTILE = [
    'AWS_REGION="$(touch owned)"',
    'AWS_REGION="`touch owned`"',
    'AWS_REGION=""; touch owned; ""',
    "touch owned",
    'AWS_REGION="x" touch="owned"',
    'A$(touch owned)="x"',
    'AWS_REGION[$(touch owned)]="x"',
    "AWS_REGION=\"'; touch owned; '\"",
    'AWS_REGION="a\\"; touch owned; \\""',
    'AWS_REGION="*"x"*"',
    'eval="touch owned"',
    '_ca_rest="x"',
    '_ca_lines="a[$(touch owned)]"',
    "AWS_REGION=eu-west-1",
    "export AWS_REGION",
    '="x"',
    '"',
    "=",
    'AWS_REGION="unterminated',
    'AWS_REGION="\x01\x1b[2J"',
    'AWS_REGION="a b"',
    'AWS_REGION=""',
    'aws_region="x"',
    'AWS_REGION ="x"',
    "AWS_REGION=$'x'",
    "-n",
    "\\",
    "\xff\xfe",
]


@pytest.mark.parametrize("line", HOSTILE)
def test_a_hostile_line_is_passed_over(login: Login, shell: list[str], line: str) -> None:
    """Nothing in the file is run, expanded or half taken: a line that we would not write is as if it were not there."""
    good = 'GCE_METADATA_ROOT="127.0.0.1:1"\n'
    login.file.write_bytes(f"{line}\n".encode("latin-1") + good.encode())
    assert login(shell) == {"GCE_METADATA_ROOT": "127.0.0.1:1"}
    assert not (login.place / "owned").exists()


def test_whatever_is_there_the_shell_comes_up(login: Login, shell: list[str]) -> None:
    """No file, an empty one, a directory, a pipe, a link to nowhere, NUL bytes, a megabyte: silence, and a shell."""
    assert login(shell) == {}
    login.file.mkdir()
    assert login(shell) == {}
    login.file.rmdir()
    os.mkfifo(login.file)
    assert login(shell) == {}
    login.file.unlink()
    login.file.symlink_to("nowhere")
    assert login(shell) == {}
    login.file.unlink()
    for content in (b"", b"\0\0\n", b'AWS_REGION="x', b"x" * (1 << 20), b"\n" * (1 << 20), b'A="\xff"\n'):
        login.file.write_bytes(content)
        assert login(shell) == {}
    login.file.write_bytes(b'\0AWS_RE\0GION="eu\0-west-1"\n')
    assert login(shell) in ({}, {"AWS_REGION": "eu-west-1"})


@pytest.mark.parametrize(
    "options", ["set -e", "set -u", "set -eu", "set -f", "IFS=/", "set -C", "alias id=false; alias tr=false"]
)
def test_the_users_own_settings_do_not_matter(login: Login, shell: list[str], options: str) -> None:
    """A profile that set options before ours comes up, with the pointers."""
    login.write(POINTERS)
    assert login(shell, before=options) == POINTERS


def test_what_a_person_chose_stays_and_what_masks_goes(login: Login, shell: list[str]) -> None:
    """A region and proxy exemptions are kept, ours added; keys and profiles that would mask the agent are unset."""
    login.write(POINTERS)
    found = login(
        shell, AWS_REGION="us-east-1", NO_PROXY="internal", AWS_PROFILE="x", GOOGLE_APPLICATION_CREDENTIALS="/x"
    )
    assert found["AWS_REGION"] == "us-east-1"
    assert found["NO_PROXY"] == found["no_proxy"] == "internal," + POINTERS["NO_PROXY"]
    assert not {"AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"} & found.keys()


def test_nothing_of_ours_is_left_in_the_shell(login: Login, shell: list[str]) -> None:
    """Neither a function nor a variable of the script outlives it."""
    login.write(POINTERS)
    done = subprocess.run(
        [*shell, "-c", f". {login.script}; set | grep -v BASH_EXECUTION; command -v credential_agent_login || echo gone"],
        env={"PATH": f"{login.place}/bin:/usr/bin:/bin", "UID_": "1000", "GROUPS_": WORKER},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\n_ca_" not in done.stdout
    assert done.stdout.endswith("gone\n")
