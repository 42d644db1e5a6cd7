"""An installation as a user has it: our wheel and what `requirements/runtime.txt` locks, and nothing else importable.

Made without a network: the very files of the locked distributions are linked out of the environment that runs the
tests, which was made from a lock that agrees with the runtime's. Where they disagree, that is an error here.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_DETOUR = """
import os
if (base := os.environ.get("DETOUR")):
    import requests.adapters
    import urllib3
    from urllib.parse import urlsplit
    def led(url):
        parts = urlsplit(url)
        if not parts.hostname.endswith(("googleapis.com", "accounts.google.com")):
            return url
        return base + parts.path + ("?" + parts.query if parts.query else "")
    plain = urllib3.PoolManager.urlopen
    def urlopen(self, method, url, *args, **more):
        return plain(self, method, led(url), *args, **more)
    urllib3.PoolManager.urlopen = urlopen
    send = requests.adapters.HTTPAdapter.send
    def send_led(self, request, **more):
        request.url = led(request.url)
        return send(self, request, **more)
    requests.adapters.HTTPAdapter.send = send_led
"""
"""Leads Google's hosts, which no setting of google-auth can move, to a loopback server. Everything else is as it is."""


def locked() -> dict[str, str]:
    """The distributions of `requirements/runtime.txt` that this machine needs, with their versions."""
    text = (REPOSITORY / "requirements/runtime.txt").read_text()
    rows = re.findall(r"^([a-z0-9-]+)==(\S+)( ;.*)?", text, re.MULTILINE)
    return {name: version for name, version, marker in rows if "python_version < " not in marker or _older(marker)}


def _older(marker: str) -> bool:
    match = re.search(r"python_version < '3\.(\d+)'", marker)
    return match is None or sys.version_info[:2] < (3, int(match[1]))


def install(directory: Path) -> Path:
    """Make the installation; gives the directory of its programs."""
    wheels = directory / "wheel"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
         "--no-index", "--no-build-isolation", "--wheel-dir", wheels, REPOSITORY],
        check=True, capture_output=True,
    )  # fmt: skip
    venv.create(directory / "v", with_pip=False, symlinks=True)
    (packages,) = (directory / "v" / "lib").glob("python*/site-packages")
    for name, version in locked().items():
        found = importlib.metadata.distribution(name)
        assert found.version == version, f"{name} {found.version} is installed, {version} is locked"
        for file in found.files or ():
            if not str(file).startswith("..") and "__pycache__" not in str(file):
                place = packages / str(file)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(Path(str(found.locate_file(file))).resolve())
    (wheel,) = wheels.iterdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", directory / "v/bin/python", "install", "--quiet", "--no-input",
         "--disable-pip-version-check", "--no-deps", "--no-index", wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    # Not sitecustomize.py: Debian has one of its own, which is found first.
    (packages / "detour.py").write_text(_DETOUR)
    (packages / "detour.pth").write_text("import detour\n")
    return directory / "v" / "bin"


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a program of a user finds in its environment; nothing of ours."""
    return {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8", **more}
