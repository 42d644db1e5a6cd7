"""The parts of the pages that are made, not written: `python -m tests.readme` puts them in place, a test compares.

* the configuration, from the docstrings and defaults of ``agent/config/schema.py``;
* what workers do not see of the machine's metadata, from the table in ``agent/serve/hiding.py``;
* the help texts, from the commands themselves.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from agent import config
from agent.config import schema
from agent.serve import hiding

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "agent" / "CONFIGURATION.md"

_SECTIONS: tuple[tuple[str, type], ...] = (
    ("[listen]", config.Listen),
    ("[identity]", config.Identity),
    ('[[keys]] kind = "file"', config.FileKey),
    ('[[keys]] kind = "credential"', config.CredentialKey),
    ('[[keys]] kind = "aws-kms"', config.AwsKmsKey),
    ('[[keys]] kind = "gcp-kms"', config.GcpKmsKey),
    ('[[keys]] kind = "ephemeral"', config.EphemeralKey),
    ("[[signers]]", config.SignerEntry),
    ('[[launch_signers]] kind = "ec2-user-data"', config.Ec2UserDataSigners),
    ('[[launch_signers]] kind = "ec2-tag"', config.Ec2TagSigners),
    ('[[launch_signers]] kind = "gce-attribute"', config.GceAttributeSigners),
    ('[[launch_signers]] kind = "credential"', config.CredentialSigners),
    ('[[launch_signers]] kind = "directory"', config.DirectorySigners),
    ('[[sources]] kind = "file"', config.FileSourceEntry),
    ('[[sources]] kind = "ec2-user-data"', config.Ec2UserDataEntry),
    ('[[sources]] kind = "gce-attribute"', config.GceAttributeEntry),
    ('[[sources]] kind = "https"', config.HttpsEntry),
    ("[enrol]", config.Enrol),
    ("[upstream]", config.Upstream),
    ("[mint]", config.Mint),
    ("[aws]", config.Aws),
    ("[gcp]", config.Gcp),
    ("[pass_through]", config.PassThrough),
    ("[environment]", config.Environment),
    ("[state]", config.State),
    ("[log]", config.Log),
    ("[metrics]", config.Metrics),
    ("[audit]", config.Audit),
    ("[redirect]", config.Redirect),
)


def configuration() -> str:
    """Every key with its default and what it means."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for title, struct in _SECTIONS:
        summary, meanings = _docstring(struct)
        rows.append(f"| **`{title}`** | | {summary} |")
        fields = msgspec.structs.fields(struct)
        if meanings.keys() != {field.name for field in fields}:
            raise ValueError(f"{title}: its docstring must explain its keys, each of them and no other: {[*meanings]}")
        rows += [f"| `{field.name}` | {_default(field)} | {meanings[field.name]} |" for field in fields]
    return "\n".join(rows)


def hidden() -> str:
    """The table of what is hidden, one row for all paths with one reason."""
    rows: dict[tuple[str, str], list[str]] = {}
    for root, table in (("/latest/", hiding.EC2_TABLE), ("/computeMetadata/v1/", hiding.GCE_TABLE)):
        for entry in table:
            if entry.when is not hiding.When.NEVER:
                path = (root + entry.path).replace("/v1/instance/attributes/", "/v1/.../attributes/")
                if "/project/attributes/" not in path:
                    rows.setdefault((entry.when.value, entry.why), []).append(f"`{path}`")
    words = ", ".join(f"`{word}`" for word in hiding.SECRET_WORDS)
    short = ", ".join(f"`{word}`" for word in hiding.SHORT_SECRET_WORDS)
    return "\n".join(
        [
            "| path, with what is below | hidden | why |",
            "|---|---|---|",
            *(f"| {', '.join(paths)} | {when} | {why} |" for (when, why), paths in rows.items()),
            f"| any name with {words} in it, or with {short} as a word | always | what a provider or an operator adds next |",
        ]
    )


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, dict):
        return "`{}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _docstring(struct: type) -> tuple[str, dict[str, str]]:
    """The summary, and the meaning of each attribute, on one line each and as Markdown."""
    text = inspect.cleandoc(struct.__doc__ or "")  # from Python 3.13 on the compiler has done so
    head, _, tail = text.partition("Attributes:")
    # What kinds have in common is told once, by the class that they are made of.
    common = [base for base in struct.__bases__ if base is not schema.Section and base.__module__ == struct.__module__]
    meanings: dict[str, str] = {name: said for base in common for name, said in _docstring(base)[1].items()}
    names: list[str] = []
    for line in tail.splitlines():
        match = re.match(r" {4}([a-z][a-z0-9_, ]*): (.*)", line)
        if match:
            names = [name.strip() for name in match[1].split(",")]
            meanings.update(dict.fromkeys(names, match[2].strip()))
        elif line.strip():
            for name in names:
                meanings[name] += " " + line.strip()
    return _markdown(head), {name: _markdown(said) for name, said in meanings.items()}


def _markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`").replace("|", "\\|")).strip()


def made(text: str) -> str:
    """The page with every made part put in place."""
    return _between(_between(text, "configuration", configuration()), "hidden", hidden())


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: ", f"<!-- /{name} -->"
    start = text.index(begin)
    start = text.index("-->", start) + len("-->")
    stop = text.index(end)
    return text[:start] + "\n" + content + "\n" + text[stop:]


def main() -> int:
    """Rewrite the page in place."""
    PAGE.write_text(made(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
