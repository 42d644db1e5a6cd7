"""Build the matrix's programs in other languages: ``python -m tests.matrix.build``.

Each language where its toolchain is, into ``build/matrix``; where it is not, the reason, which the table repeats. What was
built is built again only when its source changed. Needs the network; the matrix itself does not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.clients import PROGRAMS

SECONDS = 1800.0


@dataclass(frozen=True)
class Language:
    """One toolchain.

    Attributes:
        tools: what must be on the path.
        make: builds the sources (first argument) into a directory (second).
    """

    name: str
    tools: tuple[str, ...]
    make: Callable[[Path, Path], None]


def _run(*argv: str, cwd: Path, **more: str) -> None:
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **more}, timeout=SECONDS, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def _node(source: Path, to: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, to)
    _run("npm", "ci", "--no-audit", "--no-fund", cwd=to)


def _go(source: Path, to: Path) -> None:
    _run("go", "build", "-o", f"{to}/", "./s3", "./gcs", cwd=source)


def _java(source: Path, to: Path) -> None:
    _run("mvn", "-B", "-q", f"-Dout={to}", "compile", "dependency:copy-dependencies", cwd=source)


def _rust(source: Path, to: Path) -> None:
    _run("cargo", "build", cwd=source, CARGO_TARGET_DIR=str(to / "target"))
    shutil.copy(to / "target" / "debug" / "s3", to)


LANGUAGES = (
    Language("node", ("node", "npm"), _node),
    Language("go", ("go",), _go),
    Language("java", ("java", "javac", "mvn"), _java),
    Language("rust", ("cargo", "cc"), _rust),
)


def _sources(folder: Path) -> str:
    """What stands in the sources, in one number."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def build(language: Language, to: Path) -> str:
    """Build one; what became of it, in a few words.

    Raises:
        OSError: the build failed.
    """
    absent = [tool for tool in language.tools if shutil.which(tool) is None]
    if absent:
        return f"skipped: no {' and no '.join(absent)}"
    source, stamp = PROGRAMS / language.name, to / ".built"
    now = _sources(source)
    if stamp.exists() and stamp.read_text() == now:
        return "there"
    stamp.unlink(missing_ok=True)
    to.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    language.make(source, to)
    stamp.write_text(now)
    return f"built in {time.monotonic() - began:.0f} s"


def main() -> int:
    """Build what can be built; 1 when a build failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.build", description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, default=Path("build/matrix"))
    parser.add_argument("--without", action="append", default=[], choices=[one.name for one in LANGUAGES])
    options = parser.parse_args()
    failed = 0
    for language in LANGUAGES:
        if language.name in options.without:
            continue
        try:
            print(f"{language.name}: {build(language, options.build.resolve() / language.name)}", flush=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{language.name}: failed: {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
