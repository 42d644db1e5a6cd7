"""Which of AWS's partitions a region is in, by its name: for what must be known without botocore's data.

Source: "AWS General Reference", ARNs and partitions. :mod:`agent.providers.regions` has the data for signed requests;
:mod:`agent.enrol.sts` takes no name that it does not list.
"""

from __future__ import annotations


def partition_of(region: str | None) -> str:
    """``aws``, ``aws-cn`` or ``aws-us-gov``. A region that is not known is in the first."""
    if region is not None and region.startswith("cn-"):
        return "aws-cn"
    if region is not None and region.startswith("us-gov-"):
        return "aws-us-gov"
    return "aws"


def domain_of(region: str | None) -> str:
    """The domain in which the services of that region have their names."""
    return "amazonaws.com.cn" if partition_of(region) == "aws-cn" else "amazonaws.com"
