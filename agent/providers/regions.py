"""Which host serves STS in a region: botocore's partition data, without its endpoint machinery."""

from __future__ import annotations

import functools
import re
from typing import Any, Final

_DEFAULT_PARTITION: Final = "aws"


def sts_url(region: str) -> str:
    """The regional STS endpoint.

    Never the global one: it is a single point far away, and its tokens are refused in regions that must be enabled
    first.
    """
    return f"https://sts.{region}.{_partition_of_region(region)['outputs']['dnsSuffix']}"


def main_region(arn: str | None) -> str:
    """The region to ask when nothing says which: the main one of the partition that ``arn`` belongs to."""
    name = arn.split(":", 2)[1] if arn is not None and arn.startswith("arn:") and arn.count(":") >= 2 else ""
    for partition in _partitions():
        if partition["id"] == name:
            return str(partition["outputs"]["implicitGlobalRegion"])
    return main_region(f"arn:{_DEFAULT_PARTITION}:")


@functools.cache
def data_loader() -> Any:
    """The data files of botocore, from its own package only: the default search path includes ``~/.aws/models``."""
    from botocore.loaders import Loader  # noqa: PLC0415 - imported only when a grant needs STS

    return Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)


@functools.cache
def _partitions() -> list[dict[str, Any]]:
    partitions: list[dict[str, Any]] = data_loader().load_data("partitions")["partitions"]
    return partitions


@functools.cache
def _partition_of_region(region: str) -> dict[str, Any]:
    partitions = _partitions()
    for partition in partitions:
        if region in partition["regions"]:
            return partition
    for partition in partitions:  # a region newer than the data
        if re.match(partition["regionRegex"], region):
            return partition
    return next(p for p in partitions if p["id"] == _DEFAULT_PARTITION)
