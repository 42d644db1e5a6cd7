"""Hides parts of the machine's own metadata from workers: one table, for both clouds.

The rule: **what identifies the machine is not the workers'**, nor is what the machine was set up with. A signed
identity document is a login as the machine at Vault or SPIRE and never ends; ``kube-env`` and start scripts carry what
joins a cluster; ssh keys say who may log in. None of it is called a cloud's credential, so hiding credentials alone
would miss it.

Four sorts, see :class:`When`. Beside the table, a name that looks like a secret (:data:`SECRET_WORDS`) is hidden
wherever it stands: custom metadata has any name, and a provider's next credential is not in any table yet.

A hidden path is 404 without asking, whether it is there or not, and in no listing, tree or ETag. The operator may show
what he must and hide more (``pass_through.show``, ``pass_through.hide``); the machine's credentials while something
else decides that cloud cannot be shown.

Pure: paths in, verdicts out. Matching is without regard to case, since a service behind us may ignore it.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from agent.wire import gce, names
from agent.wire.http import segments_of

EC2_ROOT: Final = ("latest",)
GCE_ROOT: Final = (names.GCE_ROOT, names.GCE_VERSION)

Path = tuple[str, ...]


class When(enum.StrEnum):
    """When an entry of the table is hidden."""

    CREDENTIAL = "while something else than the machine decides the cloud; cannot be shown"
    MACHINE = "where bundles are taken, or one decides"
    ALWAYS = "always"
    NEVER = "never"


class Entry(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        path: below ``/latest`` or ``/computeMetadata/v1``, with what lies below it; ``*`` is any text in a segment,
            ``?`` one letter.
        why: for a person.
    """

    path: str
    when: When
    why: str


EC2_TABLE: Final = (
    Entry("meta-data/iam", When.NEVER, "the agent's own answer"),
    Entry("meta-data/identity-credentials", When.CREDENTIAL, "what AWS's own agents sign with"),
    Entry("meta-data/identity-credentials", When.ALWAYS, "for internal use, as AWS says"),
    Entry("user-data", When.ALWAYS, "it may carry the bundle, and often carries secrets"),
    Entry("dynamic/instance-identity/document", When.NEVER, "unsigned, it informs and proves nothing; SDKs need it"),
    Entry(
        "dynamic/instance-identity/*", When.MACHINE, "signatures: a login as the machine (Vault, SPIRE) that never ends"
    ),
    Entry("meta-data/public-keys", When.ALWAYS, "who may log in to the machine"),
    Entry("meta-data/managed-ssh-keys", When.ALWAYS, "who may log in to the machine (EC2 Instance Connect)"),
)

_SHOWN: Final = (
    ("tpu-env", "libtpu, JAX and PyTorch/XLA read the topology of their TPU there"),
    ("enable-oslogin*", "switches"),
)
"""Custom attributes whose names look like one of the next, and that are no secret: clients need them."""

_CUSTOM: Final = (
    (names.BUNDLE_ATTRIBUTE, "it carries the bundle"),
    *(
        (name, "it may carry the bundle, and often carries secrets")
        for name in ("*user?data*", "*userdata*", "*vendor?data*", "*vendordata*")
    ),
    ("*script*", "what the machine is set up with: startup-script, shutdown-script, windows-startup-script-ps1..."),
    ("kube*", "what joins a cluster: kube-env, kubeconfig, kubelet-config..."),
    ("gke-*", "what joins a cluster"),
    ("*bootstrap*", "what joins a cluster"),
    ("*ssh*", "who may log in: ssh-keys, sshKeys, block-project-ssh-keys"),
    *((name, "what logs in to a registry, or is given to containers") for name in ("*registry*", "*docker*cfg*")),
    *(
        (name, "configurations carry secrets: docker-config, kubeconfig, cloud_config, configure-sh...")
        for name in ("*config*", "*conf", "*cfg", "*settings*", "*properties*", "*tfvars*")
    ),
    *(
        (name, "what the machine is set up with")
        for name in ("*cloud?init*", "*cloudinit*", "*ignition*", "*sysprep*", "*unattend*", "*playbook*")
    ),
    *(
        (name, "environments carry secrets")
        for name in ("*env", "env?*file*", "*?env?*file*", "*envfile*", "*env?var*", "*envvar*", "*?environment*")
    ),
    ("environment?*", "environments carry secrets"),
    *(
        (name, "it holds a container's environment")
        for name in ("*container?declaration*", "*manifest*", "*compose*", "*dockerfile*")
    ),
    *(
        (name, "an address of a database carries its password")
        for name in ("*db?ur?", "*database*ur?", "*sql*ur?", "*postgres*ur?", "*mongo*ur?", "*redis*ur?", "*amqp*ur?")
    ),
    *((name, "an address of a database carries its password") for name in ("*broker*ur?", "*conn*str*", "*jdbc*")),
    *((name, "keys of a service account are called so") for name in ("*service?account*", "*sa?json")),
)
"""Of custom attributes, the instance's and the project's; by name as people spell it, since anybody may set any."""

GCE_TABLE: Final = (
    *(
        Entry(f"instance/{name}", When.CREDENTIAL, "the machine's service account and its certificates")
        for name in (
            "credentials",
            "gce-workload-certificates",
            "workload-identities",
            "workload-trusted-root-certs",
            "workload-certificates-config-status",
        )
    ),
    Entry("instance/service-accounts", When.NEVER, "the agent's own answer"),
    Entry("instance/credentials", When.ALWAYS, "the machine's certificate for the metadata server itself"),
    Entry("instance/gce-workload-certificates", When.MACHINE, "certificates that name the machine"),
    Entry("instance/workload-*", When.MACHINE, "certificates that name the machine"),
    Entry("instance/virtual-clock", When.NEVER, "drift-token is no secret: clocks watch it"),
    Entry("instance/guest-attributes", When.NEVER, "what the machine tells of itself; writing is another matter"),
    Entry("oslogin", When.NEVER, "names of users and groups, which the C library asks for"),
    *(
        Entry(f"{scope}/attributes/{name}", when, why)
        for when, custom in ((When.NEVER, _SHOWN), (When.ALWAYS, _CUSTOM))
        for name, why in custom
        for scope in ("instance", "project")
    ),
)

_NAMED_BY_ANYBODY: Final = {EC2_ROOT: ("meta-data", "tags", "instance"), GCE_ROOT: ("instance", "partner-attributes")}
"""Directories whose entries have any name; those of attributes are in the table."""

SECRET_WORDS: Final = (
    *("key", "token", "secret", "pass", "pwd", "cert", "cred", "private", "jwt", "auth", "login", "hmac", "cookie"),
    *("webhook", "encrypt", "unseal", "mnemonic", "netrc", "presigned", "kerberos"),
)
"""A name that holds one of these is hidden wherever it stands. Better too much than too little: what a worker needs
under such a name, the operator lists in ``pass_through.show``."""

SHORT_SECRET_WORDS: Final = ("pw", "psk", "pem", "pfx", "p12", "dsn", "sas", "otp", "pat")
"""Likewise, but only as a whole word: ``db_pw``, and not ``spawn``."""

_SECRET: Final = re.compile(
    "|".join((*SECRET_WORDS, *(rf"(?<![a-z0-9]){word}(?![a-z0-9])" for word in SHORT_SECRET_WORDS)))
)


_KEPT: Final = 4096
_KEPT_CHARACTERS: Final = 512
"""So many paths, no longer than that, are looked up once: a few megabytes at most, whatever workers ask for."""


def folded(path: Path) -> Path:
    """A path for comparing: what a service that ignores case would take for the same."""
    return tuple(segment.casefold() for segment in path)


def _matcher(segment: str) -> Callable[[str], object]:
    """What tells whether a folded segment is a pattern's. Few have a wildcard, and an expression takes long to make."""
    pattern = segment.casefold()
    if "*" not in pattern and "?" not in pattern:
        return pattern.__eq__
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]"))).match


class _Prefix:
    """A path pattern, ready to be compared."""

    def __init__(self, path: Path) -> None:
        self._parts = tuple(map(_matcher, path))

    def __len__(self) -> int:
        return len(self._parts)

    def covers(self, path: Path) -> bool:
        """Whether a folded path is the pattern's or below it."""
        return len(path) >= len(self) and all(part(s) for part, s in zip(self._parts, path, strict=False))

    def crosses(self, path: Path) -> bool:
        """Whether something below a folded path may be the pattern's."""
        return all(part(s) for part, s in zip(self._parts, path, strict=False))


def _below(root: Path, paths: tuple[str, ...]) -> tuple[_Prefix, ...]:
    found = []
    for path in paths:
        segments = segments_of(path)
        if folded(segments[: len(root)]) == folded(root) and len(segments) > len(root):
            found.append(_Prefix(segments[len(root) :]))
    return tuple(found)


class _Found(NamedTuple):
    """What the patterns say of a folded path: which of them cover it, and whether a name in it looks like a secret."""

    hide: bool
    credential: bool
    show: bool
    when: When | None
    secret: bool


class Hiding:
    """The table of one cloud, with what the operator added.

    Args:
        root: :data:`EC2_ROOT` or :data:`GCE_ROOT`.
        hide: whole paths (``/latest/...``, ``/computeMetadata/v1/...``) to hide beside the table's, with what is below.
        show: likewise, what the table or its name would hide. ``hide`` is stronger.
        expects_bundle: whether bundles are taken here; asked each time, since a reload may change it.
    """

    def __init__(
        self, root: Path, *, hide: tuple[str, ...], show: tuple[str, ...], expects_bundle: Callable[[], bool]
    ) -> None:
        table = EC2_TABLE if root == EC2_ROOT else GCE_TABLE
        self._hide = _below(root, hide)
        self._show = _below(root, show)
        self._credentials = tuple(
            _Prefix(tuple(entry.path.split("/"))) for entry in table if entry.when is When.CREDENTIAL
        )
        self._table = tuple(
            (_Prefix(tuple(entry.path.split("/"))), entry.when) for entry in table if entry.when is not When.CREDENTIAL
        )
        self._custom = _NAMED_BY_ANYBODY[root]
        self._expects_bundle = expects_bundle
        # A hundred patterns for each name, and a tree has many: workers who asked for it kept all others waiting.
        self._kept = lru_cache(maxsize=_KEPT)(self._look_up)

    def hides(self, below: Path, *, decided: bool) -> bool:
        """Whether the path ``below`` the root is hidden.

        Args:
            below: decoded segments.
            decided: whether something else than the machine itself decides this cloud.
        """
        path = folded(below)
        short = sum(map(len, path)) + len(path) <= _KEPT_CHARACTERS
        found = self._kept(path) if short else self._look_up(path)
        if found.hide or (decided and found.credential):
            return True
        if found.show:
            return False
        if found.when is not None:
            return found.when is When.ALWAYS or (found.when is When.MACHINE and (decided or self._expects_bundle()))
        return found.secret

    def _look_up(self, path: Path) -> _Found:
        when = next((when for prefix, when in self._table if prefix.covers(path)), None)
        return _Found(
            any(prefix.covers(path) for prefix in self._hide),
            any(prefix.covers(path) for prefix in self._credentials),
            any(prefix.covers(path) for prefix in self._show),
            when,
            any(_SECRET.search(segment) for segment in path),
        )

    def lists(self, below: Path) -> bool:
        """Whether ``below`` is a directory of which we know that something in it may be hidden."""
        path = folded(below)
        prefixes = (*self._hide, *self._credentials, *(prefix for prefix, _ in self._table))
        return path in {(), self._custom} or any(len(p) > len(path) and p.crosses(path) for p in prefixes)

    def _is_open(self, path: Path) -> bool:
        """Whether nothing below is hidden, so that nobody need look: workers write guest attributes without number."""
        if any(prefix.crosses(path) for prefix in self._hide):
            return False
        entry = next((when for prefix, when in self._table if prefix.covers(path)), None)
        return entry is When.NEVER

    def pruned(self, tree: object, below: Path, *, decided: bool) -> object:
        """The recursive JSON form of GCE's tree without what is hidden; the very same object when nothing is.

        Directories are spelt in camel case there, custom names as they are: a name is hidden under either spelling.
        Lists are looked into, too.

        Raises:
            RecursionError: it is nested too deeply.
        """
        if isinstance(tree, list):
            items = [self.pruned(item, (*below, str(index)), decided=decided) for index, item in enumerate(tree)]
            return tree if all(a is b for a, b in zip(items, tree, strict=True)) else items
        if not isinstance(tree, dict) or self._is_open(folded(below)):
            return tree
        kept: dict[str, object] = {}
        changed = False
        for name, child in tree.items():
            spelt = (*below, gce.kebab(name))
            if self.hides((*below, name), decided=decided) or self.hides(spelt, decided=decided):
                changed = True
                continue
            kept[name] = self.pruned(child, spelt, decided=decided)
            changed |= kept[name] is not child
        return kept if changed else tree


GUARDED_NAMESPACES: Final = ("credential-agent*", "hostkeys", "guestinventory", "guest-*", "google*", "gce*", "gke*")
"""Guest attributes that others believe to come from the machine: ``gcloud compute ssh`` takes ``hostkeys`` for the
machine's own, and senders seal to the key that the agent publishes. No worker writes there, nor in the namespace where
the agent publishes."""

_GUEST_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")


class GuestWrites:
    """Which guest attributes a worker may write: one key of a namespace that is nobody else's.

    Args:
        namespaces: those in which the agent itself publishes.
    """

    def __init__(self, namespaces: tuple[str, ...]) -> None:
        self._guarded = _Prefix(("instance", "guest-attributes"))
        self._namespaces = tuple(_Prefix((name,)) for name in (*GUARDED_NAMESPACES, *namespaces))

    def refusal(self, below: Path, *, slash: bool, query: str) -> str | None:
        """Why a write to ``below`` is refused; ``None`` when it may pass."""
        if not self._guarded.covers(folded(below)):
            return "workers write guest attributes only"
        names = below[2:]
        if len(names) != 2 or slash or query or not all(_GUEST_NAME.match(name) for name in names):
            return "expected instance/guest-attributes/NAMESPACE/KEY"
        if any(prefix.covers(folded(names)) for prefix in self._namespaces):
            return "what stands in this namespace is taken for the machine's own word: workers do not write it"
        return None
