"""What a person would write with each client, and nothing to help it: no credential, no endpoint of ours.

``python python_clients.py NAME`` says that it is here; then, for each line on standard input, reads once more with the same
client object and says how it went, as one line of JSON. ``MATRIX_STORE`` is where the objects are.
"""

import json
import os
import subprocess
import sys

STORE = os.environ["MATRIX_STORE"]  # http://127.0.0.1:PORT
HOST = STORE.removeprefix("http://")
REGION = "us-east-1"


def boto3():
    import boto3 as library
    from botocore.config import Config

    client = library.client("s3", endpoint_url=STORE, config=Config(retries={"total_max_attempts": 1}))

    def read():
        return client.get_object(Bucket="bucket", Key="hello.txt")["Body"].read()

    return read


def aiobotocore():
    import asyncio

    from aiobotocore.session import get_session

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(get_session().create_client("s3", endpoint_url=STORE).__aenter__())

    async def read():
        answer = await client.get_object(Bucket="bucket", Key="hello.txt")
        async with answer["Body"] as body:
            return await body.read()

    return lambda: loop.run_until_complete(read())


def s3fs():
    from s3fs import S3FileSystem

    fs = S3FileSystem(client_kwargs={"endpoint_url": STORE}, skip_instance_cache=True)
    return lambda: fs.cat_file("bucket/hello.txt")


def awscli():
    argv = [sys.executable, "-m", "awscli", "--endpoint-url", STORE, "s3api", "get-object", "--bucket", "bucket"]

    def read():
        done = subprocess.run([*argv, "--key", "hello.txt", "/dev/stdout"], capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode().strip()[-300:])
        return done.stdout.partition(b"\n{")[0] if not done.stdout.startswith(b"hello") else b"hello matrix\n"

    return read


def pyarrow():
    from pyarrow.fs import S3FileSystem

    fs = S3FileSystem(endpoint_override=HOST, scheme="http", region=REGION)
    return lambda: fs.open_input_file("bucket/hello.txt").read()


def obstore():
    import obstore as library
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=STORE, region=REGION, client_options={"allow_http": True})
    return lambda: bytes(library.get(store, "hello.txt").bytes())


def deltalake():
    from deltalake import DeltaTable

    options = {"AWS_ENDPOINT_URL": STORE, "AWS_ALLOW_HTTP": "true", "AWS_REGION": REGION}

    def read():
        table = DeltaTable("s3://bucket/table", storage_options=options)
        assert table.version() == 0
        return b"hello matrix\n"

    return read


def polars():
    import polars as pl

    options = {"aws_endpoint_url": STORE, "aws_allow_http": "true", "aws_region": REGION}

    def read():
        frame = pl.scan_csv("s3://bucket/data.csv", storage_options=options).collect()
        assert frame.shape == (2, 2)
        return b"hello matrix\n"

    return read


def opendal():
    import opendal as library

    operator = library.Operator("s3", bucket="bucket", endpoint=STORE, region=REGION, root="/")
    return lambda: bytes(operator.read("hello.txt"))


def duckdb():
    import duckdb as library
    import duckdb_extensions

    con = library.connect()
    for name in ("httpfs", "aws"):
        duckdb_extensions.import_extension(name, con=con)
        con.execute(f"LOAD {name}")

    def read():
        con.execute(
            f"CREATE OR REPLACE SECRET s (TYPE s3, PROVIDER credential_chain, ENDPOINT '{HOST}', "
            f"URL_STYLE 'path', USE_SSL false, REGION '{REGION}')"
        )
        assert con.execute("SELECT count(*) FROM read_csv('s3://bucket/data.csv')").fetchone() == (2,)
        return b"hello matrix\n"

    return read


def awscrt():
    import urllib.request

    from awscrt.auth import AwsCredentialsProvider, AwsSigningAlgorithm, AwsSigningConfig, aws_sign_request
    from awscrt.http import HttpHeaders, HttpRequest

    provider = AwsCredentialsProvider.new_default_chain()

    def read():
        request = HttpRequest("GET", "/bucket/hello.txt", HttpHeaders([("Host", HOST)]))
        how = AwsSigningConfig(
            algorithm=AwsSigningAlgorithm.V4, credentials_provider=provider, region=REGION, service="s3"
        )
        signed = aws_sign_request(request, how).result(timeout=20)
        sent = urllib.request.Request(STORE + "/bucket/hello.txt", headers=dict(signed.headers))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sent, timeout=10) as answer:
            return answer.read()

    return read


def s3torchconnector():
    from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

    client = MountpointS3Client(region=REGION, endpoint=STORE, force_path_style=True, unsigned=False)

    def read():
        return b"".join(client.get_object("bucket", "hello.txt"))

    return read


def minio():
    from minio import Minio
    from minio.credentials import IamAwsProvider

    client = Minio(HOST, credentials=IamAwsProvider(), secure=False, region=REGION)

    def read():
        answer = client.get_object("bucket", "hello.txt")
        try:
            return answer.read()
        finally:
            answer.close()

    return read


def rasterio():
    import rasterio as library

    options = {
        "AWS_S3_ENDPOINT": HOST,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "VSI_CACHE": "FALSE",
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/bucket",
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    }

    def read():
        # GDAL's own credential chain: rasterio would otherwise put boto3's answer in its place.
        environment = library.Env(session=library.session.DummySession(), **options)
        with environment, library.open("/vsis3/bucket/raster.tif") as raster:
            assert raster.read(1).shape == (2, 2)
        return b"hello matrix\n"

    return read


def daft():
    import daft as library
    from daft.io import IOConfig, S3Config

    io = IOConfig(s3=S3Config(endpoint_url=STORE, region_name=REGION, use_ssl=False))

    def read():
        frame = library.read_csv("s3://bucket/data.csv", io_config=io).to_pydict()
        assert len(frame["a"]) == 2
        return b"hello matrix\n"

    return read


# -- Google ------------------------------------------------------------------------------------------------------------


def _fetch(token):
    import urllib.request

    sent = urllib.request.Request(
        f"{STORE}/storage/v1/b/bucket/o/hello.txt?alt=media", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sent, timeout=10) as answer:
        return answer.read()


def google_auth():
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_only"])
    session = AuthorizedSession(credentials)
    session.trust_env = False

    def read():
        answer = session.get(f"{STORE}/storage/v1/b/bucket/o/hello.txt?alt=media", timeout=20)
        answer.raise_for_status()
        return answer.content

    return read


def google_cloud_storage():
    from google.cloud import storage

    client = storage.Client(client_options={"api_endpoint": STORE})
    return lambda: client.bucket("bucket").blob("hello.txt").download_as_bytes(timeout=20)


def gcloud():
    def read():
        done = subprocess.run(
            ["gcloud", "auth", "print-access-token", "--quiet"], capture_output=True, check=False, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        return _fetch(done.stdout.strip())

    return read


def gcsfs():
    import gcsfs as library

    fs = library.GCSFileSystem(endpoint_url=STORE, token="google_default", skip_instance_cache=True)
    return lambda: fs.cat_file("bucket/hello.txt")


def gcloud_aio():
    import asyncio

    import aiohttp
    from gcloud.aio.auth import Token

    loop = asyncio.new_event_loop()

    async def make():
        session = aiohttp.ClientSession()
        return Token(session=session, scopes=["https://www.googleapis.com/auth/devstorage.read_only"])

    token = loop.run_until_complete(make())
    return lambda: _fetch(loop.run_until_complete(token.get()))


def pyarrow_gcs():
    from datetime import timedelta

    from pyarrow.fs import GcsFileSystem

    fs = GcsFileSystem(endpoint_override=HOST, scheme="http", retry_time_limit=timedelta(seconds=10))
    return lambda: fs.open_input_file("bucket/hello.txt").read()


def obstore_gcs():
    import obstore as library
    from obstore.store import GCSStore

    store = GCSStore("bucket", base_url=STORE, client_options={"allow_http": True})
    return lambda: bytes(library.get(store, "hello.txt").bytes())


def rasterio_gcs():
    import rasterio as library

    options = {
        "CPL_GS_ENDPOINT": f"{STORE}/",
        "VSI_CACHE": "FALSE",
        "CPL_VSIL_CURL_NON_CACHED": "/vsigs/bucket",
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    }

    def read():
        with library.Env(**options), library.open("/vsigs/bucket/raster.tif") as raster:
            assert raster.read(1).shape == (2, 2)
        return b"hello matrix\n"

    return read


def tensorstore():
    import tensorstore as library

    store = library.KvStore.open({"driver": "gcs", "bucket": "bucket"}).result()
    return lambda: store.read("hello.txt").result(timeout=20).value


def main():
    make = globals()[sys.argv[1].replace("-", "_")]
    read = None
    print("here", flush=True)
    for _ in sys.stdin:
        try:
            # A client may fail when it is made: that is an answer too.
            read = read or make()
            print(json.dumps({"ok": read() == b"hello matrix\n"}), flush=True)
        except BaseException as error:  # noqa: BLE001 - panics of Rust are BaseException
            print(json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}), flush=True)


if __name__ == "__main__":
    main()
