"""The worker's own keys, behind one question: "what is the content key of this recipient entry?".

In memory (:mod:`agent.keys.local`) or in a cloud's key service that never gives them out (:mod:`agent.keys.aws_kms`,
:mod:`agent.keys.gcp_kms`); :class:`Keyring` holds them together and opens bundles.
"""

from __future__ import annotations

from agent.keys.aws_kms import AwsKmsKey
from agent.keys.gcp_kms import GcpKmsKey
from agent.keys.keyring import MAX_TRIES, Keyring, WorkerKey
from agent.keys.local import LocalKey, ephemeral_key, load_credential, load_key_file, restored_key

__all__ = [
    "MAX_TRIES",
    "AwsKmsKey",
    "GcpKmsKey",
    "Keyring",
    "LocalKey",
    "WorkerKey",
    "ephemeral_key",
    "load_credential",
    "load_key_file",
    "restored_key",
]
