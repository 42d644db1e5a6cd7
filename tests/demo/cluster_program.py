import sys

import boto3
from dask.distributed import Client

from agent import forward


def read(_: int) -> str:
    s3 = boto3.Session().client("s3")
    text: str = s3.get_object(Bucket="davids-numbers", Key="numbers.txt")["Body"].read().decode()
    return text


client = Client(sys.argv[1], set_as_default=False)
with forward.dask(client):
    print(client.gather(client.map(read, range(6), pure=False)))
