"""The configuration file: TOML, decoded strictly into frozen values.

An unknown key, a wrong type, a path that cannot be right: each is told in one clear line with the key and what was
expected, and nothing is started. Every default has its unit and its reason here, and only here. No environment variable
is read: what a unit file passes to the daemon (``NOTIFY_SOCKET``, ``LISTEN_FDS``, ``CREDENTIALS_DIRECTORY``) is the
composition root's business.

What this package does *not* do: open the files it names. A missing key file is the daemon's error, with its own text.
"""

from agent.config.checks import courier_path, host_port
from agent.config.faults import Fault
from agent.config.meant import Meant, ranges_in
from agent.config.read import MAX_FILE_BYTES, RedirectRead, follows, load, load_redirect, parse, survey, text
from agent.config.salvage import named_workers
from agent.config.schema import (
    MAX_SOCKET_PATH_BYTES,
    Audit,
    Aws,
    AwsKmsKey,
    Config,
    CredentialKey,
    CredentialSigners,
    DirectorySigners,
    Ec2TagSigners,
    Ec2UserDataEntry,
    Ec2UserDataSigners,
    Enrol,
    Environment,
    EphemeralKey,
    FileKey,
    FileSourceEntry,
    GceAttributeEntry,
    GceAttributeSigners,
    Gcp,
    GcpKmsKey,
    HttpsEntry,
    Identity,
    KeyEntry,
    LaunchSigners,
    LaunchSignersEntry,
    Listen,
    Log,
    Metrics,
    Mint,
    PassThrough,
    Redirect,
    SignerEntry,
    SourceEntry,
    State,
    Upstream,
)

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_SOCKET_PATH_BYTES",
    "Audit",
    "Aws",
    "AwsKmsKey",
    "Config",
    "CredentialKey",
    "CredentialSigners",
    "DirectorySigners",
    "Ec2TagSigners",
    "Ec2UserDataEntry",
    "Ec2UserDataSigners",
    "Enrol",
    "Environment",
    "EphemeralKey",
    "Fault",
    "FileKey",
    "FileSourceEntry",
    "GceAttributeEntry",
    "GceAttributeSigners",
    "Gcp",
    "GcpKmsKey",
    "HttpsEntry",
    "Identity",
    "KeyEntry",
    "LaunchSigners",
    "LaunchSignersEntry",
    "Listen",
    "Log",
    "Meant",
    "Metrics",
    "Mint",
    "PassThrough",
    "Redirect",
    "RedirectRead",
    "SignerEntry",
    "SourceEntry",
    "State",
    "Upstream",
    "courier_path",
    "follows",
    "host_port",
    "load",
    "load_redirect",
    "named_workers",
    "parse",
    "ranges_in",
    "survey",
    "text",
]
