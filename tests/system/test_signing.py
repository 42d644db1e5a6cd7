"""Signed packages and repositories, by a key that is thrown away, as those who install check them: rpm, debsig-verify, apt.

No booted machine: every check has a directory of its own in place of the machine's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.test_packages import BUILD, REPOSITORY, build

WORDS = "not a word of a book"
TOOLS = ("gpg", "gpgconf", "rpm", "debsig-verify", "apt-ftparchive")
missing = [name for name in TOOLS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("install"),
    pytest.mark.skipif(not (BUILD / "nfpm").exists(), reason="needs nfpm (make build-tools)"),
    pytest.mark.skipif(
        bool(missing), reason=f"needs {', '.join(missing)} (apt-get install gpg rpm debsig-verify apt-utils)"
    ),
]

POLICY = """<?xml version="1.0"?>
<!DOCTYPE Policy SYSTEM "https://www.debian.org/debsig/1.0/policy.dtd">
<Policy xmlns="https://www.debian.org/debsig/1.0/">
  <Origin Name="worker credential agent" id="{id}" Description="its packages"/>
  <Selection><Required Type="origin" File="key.gpg" id="{id}"/></Selection>
  <Verification MinOptional="0"><Required Type="origin" File="key.gpg" id="{id}"/></Verification>
</Policy>
"""


def result(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command that may fail."""
    argv = [str(part) for part in command]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def said(*command: str | Path, **environ: str) -> str:
    """What a command says that must not fail."""
    done = result(*command, **environ)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


class Key:
    """An OpenPGP key in a home of its own, and its halves as files."""

    def __init__(self, place: Path) -> None:
        self.home = place / "gnupg"
        self.home.mkdir(parents=True, mode=0o700)
        asked = ("--pinentry-mode", "loopback", "--passphrase", WORDS)
        self.gpg(*asked, "--quick-generate-key", "packages <packages@example.invalid>", "rsa3072", "sign", "1d")
        found = re.search(r"(?m)^fpr:+([0-9A-F]{40}):", self.gpg("--with-colons", "--list-keys"))
        assert found is not None
        self.id = found[1][-16:]
        self.secret, self.public, self.binary = (place / name for name in ("release.asc", "public.asc", "public.gpg"))
        self.gpg(*asked, "--armor", "--output", self.secret, "--export-secret-keys")
        self.gpg("--armor", "--output", self.public, "--export")
        self.gpg("--output", self.binary, "--export")
        # As an agent that was asked once today: the page's commands ask no more.
        (self.home / "gpg.conf").write_text(f"batch\nyes\npinentry-mode loopback\npassphrase-file {place / 'words'}\n")
        (place / "words").write_text(WORDS)

    def gpg(self, *arguments: str | Path) -> str:
        return said("gpg", "--homedir", self.home, "--batch", "--yes", *arguments)

    def close(self) -> None:
        result("gpgconf", "--homedir", self.home, "--kill", "all")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Key]:
    """The key of the release."""
    # A socket's path is short.
    made = Key(tmp_path_factory.mktemp("k"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def signed(key: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, signed as they are made."""
    target = tmp_path_factory.mktemp("signed")
    build(target, SIGNING_KEY=str(key.secret), NFPM_PASSPHRASE=WORDS)
    return target


def only(place: Path, pattern: str) -> Path:
    (found,) = place.glob(pattern)
    return found


def altered(package: Path, place: Path) -> Path:
    """The same with one other byte in what it installs."""
    data = bytearray(package.read_bytes())
    data[len(data) // 2] ^= 1
    made = place / package.name
    made.write_bytes(data)
    return made


def test_an_rpm_says_who_made_it(key: Key, signed: Path, tmp_path: Path) -> None:
    """Rpm takes it with the maker's key, and takes neither another package, one of another key nor one without."""
    package, database = only(signed, "*.rpm"), ("--dbpath", tmp_path / "rpmdb")
    assert result("rpm", *database, "--checksig", package).returncode != 0, "nobody's key is known yet"
    said("rpm", *database, "--import", key.public)
    listed = said("rpm", *database, "--checksig", "--verbose", package)
    assert re.search(rf"Header .*Signature, key ID {key.id[-8:]}: OK", listed, re.IGNORECASE), listed
    assert "NOKEY" not in listed
    assert result("rpm", *database, "--checksig", altered(package, tmp_path)).returncode != 0


def test_a_deb_says_who_made_it(key: Key, signed: Path, tmp_path: Path) -> None:
    """debsig-verify takes it by a policy with the maker's key, and takes no other."""
    package, places = only(signed, "*.deb"), (tmp_path / "policies", tmp_path / "keyrings")
    check = ("debsig-verify", "--policies-dir", places[0], "--keyrings-dir", places[1])
    for place in places:
        (place / key.id).mkdir(parents=True)
    assert result(*check, package).returncode != 0, "no policy is there yet"
    (places[0] / key.id / "agent.pol").write_text(POLICY.format(id=key.id))
    shutil.copy(key.binary, places[1] / key.id / "key.gpg")
    said(*check, package)
    assert result(*check, altered(package, tmp_path)).returncode != 0


def page() -> list[str]:
    """The commands by which the page makes a repository."""
    from tests.test_docs import commands

    text = (REPOSITORY / "packer/README.md").read_text()
    return commands(text.split("### Signed", 1)[1].split("\n### ", 1)[0])


class Apt:
    """apt with a machine of its own, which knows one source."""

    def __init__(self, place: Path, repository: Path, keyring: Path) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (place / name).mkdir(parents=True)
        self.place = place
        (place / "status").touch()
        (line,) = (line for line in page() if "signed-by=" in line)
        source = re.search(r"'(deb .*)'", line)
        assert source is not None
        words = source[1].replace("/etc/apt/keyrings/credential-agent.asc", str(keyring))
        (place / "sources.list").write_text(words.replace("https://packages.example/", f"file:{repository}") + "\n")
        self._options = [
            f"Dir::Etc::sourcelist={place}/sources.list", "Dir::Etc::sourceparts=-", f"Dir::State={place}/state",
            f"Dir::State::status={place}/status", f"Dir::Cache={place}/cache", "Dir::Etc::trusted=/dev/null",
            "Dir::Etc::trustedparts=/dev/null", "APT::Sandbox::User=root", "APT::Update::Error-Mode=any",
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = [part for option in self._options for part in ("-o", option)]
        command = ["apt-get", "--quiet", *options, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.place)


def make_repository(signed: Path, place: Path, environ: Mapping[str, str]) -> Path:
    """What the page's commands make of the packages."""
    for path in signed.iterdir():
        (place / path.name).hardlink_to(path)
    begin, *lines = [line for line in page() if "signed-by=" not in line and "apt-get" not in line]
    assert begin == "SIGNING_KEY=release.asc NFPM_PASSPHRASE=... make packages && cd build/packages"
    for line in lines:
        if line.split()[0] == "createrepo_c" and shutil.which("createrepo_c") is None:
            (place / "repodata").mkdir()
            (place / "repodata/repomd.xml").touch()
            continue
        subprocess.run(["bash", "-c", line], cwd=place, check=True, capture_output=True, env={**os.environ, **environ})
    return place


def test_a_repository_is_its_makers(key: Key, signed: Path, tmp_path: Path) -> None:
    """Apt takes what the page's commands make, with the maker's key; no other list, package or key."""
    place = tmp_path / "repository"
    place.mkdir()
    make_repository(signed, place, {"GNUPGHOME": str(key.home)})
    for name in ("SHA256SUMS", "repodata/repomd.xml"):
        key.gpg("--verify", place / f"{name}.asc", place / name)
    apt = Apt(tmp_path / "machine", place, key.public)
    done = apt("update")
    assert done.returncode == 0, done.stderr
    done = apt("download", "credential-agent")
    assert done.returncode == 0, done.stderr
    package = only(apt.place, "*.deb")
    assert package.read_bytes() == only(signed, "*.deb").read_bytes()

    package.unlink()
    theirs = only(place, "*.deb")
    theirs.unlink()
    altered(only(signed, "*.deb"), place)
    assert apt("download", "credential-agent").returncode != 0
    stranger = Key(tmp_path / "s")
    try:
        assert Apt(tmp_path / "other", place, stranger.public)("update").returncode != 0
    finally:
        stranger.close()
    with (place / "Packages").open("a") as listed:
        listed.write("\n")
    assert Apt(tmp_path / "third", place, key.public)("update").returncode != 0


def test_a_key_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    """Told to sign, it never makes a package without a signature: it says which file it looked for."""
    done = result(
        REPOSITORY / "packer/package.sh", tmp_path / "made",
        BUILD=str(BUILD), NFPM=str(BUILD / "nfpm"), SIGNING_KEY=str(tmp_path / "none.asc"),
    )  # fmt: skip
    assert done.returncode == 66
    assert f"SIGNING_KEY: expected an OpenPGP secret key, and {tmp_path}/none.asc cannot be read" in done.stderr
    assert list((tmp_path / "made").iterdir()) == []
