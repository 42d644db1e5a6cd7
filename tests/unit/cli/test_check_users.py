"""``check`` looks up whom the configuration names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_user_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A warning with the name, and no error: the machine's users may come after its image."""
    path = tmp_path / "config.toml"
    files = "".join(
        f'{name} = "{tmp_path}/{name}"\n' for name in ("file", "shell_file", "token_file", "container_file")
    )
    path.write_text(
        f'[state]\ndirectory = "{tmp_path}"\n[environment]\n{files}[redirect]\nusers = ["root-of-nowhere", "a\\u0000b", "root"]\n'
    )
    command = [sys.executable, "-m", "agent", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "no user 'root-of-nowhere'" in done.stderr
    assert r"no user 'a\x00b'" in done.stderr
    assert "no user 'root'" not in done.stderr
    assert done.returncode == 0, done.stderr
