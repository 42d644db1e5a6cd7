"""What of a bundle's variables reaches programs: by shape, and nothing that loads code or moves trust."""

from __future__ import annotations

import pytest

from agent.core.variables import passes

USUAL = [
    "MYAPP_TOKEN",
    "MY_APP_API_KEY",
    "DATABASE_URL",
    "REDIS_URL",
    "HF_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "OPENAI_API_KEY",
    "SENTRY_DSN",
    "APP_SECRET",
    "DB_PASSWORD",
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "STRIPE_SECRET_KEY",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCOUNT_ID",
    "GOOGLE_CLOUD_PROJECT",
    "GCP_PROJECT",
    "GCLOUD_PROJECT",
    "PROJECT_ID",
    "TEAM_NAMESPACE",
    "DATA_BUCKET",
    "COILED_API_TOKEN",
    "BIGQUERY_PROJECT",
    "PUBSUB_TOPIC",
    "SPANNER_DATABASE",
    "myapp_token",
]

EVIL = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHON_KEY",
    "PERL5LIB",
    "PERL5OPT",
    "RUBYLIB",
    "RUBYOPT",
    "NODE_OPTIONS",
    "BASH_ENV",
    "ENV",
    "PATH",
    "IFS",
    "PROMPT_COMMAND",
    "PS4",
    "GIT_SSH_COMMAND",
    "GIT_CONFIG_KEY_0",
    "GIT_ASKPASS",
    "SSH_AUTH_SOCK",
    "SSH_USER",
    "DASK_DISTRIBUTED__WORKER__PRELOAD",
    "DASK_CONFIG",
    "DASK_SCHEDULER_URL",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_TOKEN",
    "R_LIBS",
    "R_PROFILE_USER",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_INDEX_URL",
    "UV_PYTHON",
    "CONDA_PKGS_DIRS",
    "NPM_CONFIG_REGISTRY",
    "OMPI_MCA_mca_component_path",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "GLIBC_TUNABLES",
    "MALLOC_CHECK_",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "CURL_HOME",
    "XDG_CONFIG_HOME",
    "HOME",
    "SHELL",
    "USER",
    "EDITOR",
    "PAGER",
    "LESSOPEN",
    "TERMINFO",
    "TMPDIR",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_CONFIG",
    "CLOUDSDK_PYTHON",
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE",
    "BOTO_CONFIG",
    "SPARK_CONF_DIR",
    "HADOOP_CONF_DIR",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_ADDRESS",
    "MPLBACKEND",
    "MPLCONFIGDIR",
    "KUBECONFIG",
    "DOCKER_HOST",
    "HF_ENDPOINT",
    "WANDB_BASE_URL",
    "OPENAI_BASE_URL",
    "VAULT_ADDR",
    "NCCL_NET_PLUGIN",
    "CUDA_INJECTION64_PATH",
    "AIRFLOW__CORE__PLUGINS_FOLDER",
    "LUA_PATH",
    "TF_PLUGIN_KEY",
    "NOTIFY_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "PGHOST",
    "PGSERVICEFILE",
    "NUMBA_CACHE_DIR",
    "SOMETHING",
    "TOKEN",
    "A__TOKEN",
    "_X_TOKEN",
    "X_TOKEN_",
    "BIGQUERY_EMULATOR_HOST",
    "BIGTABLE_EMULATOR_HOST",
    "DATASTORE_EMULATOR_HOST",
    "FIRESTORE_EMULATOR_HOST",
    "PUBSUB_EMULATOR_HOST",
    "SPANNER_EMULATOR_HOST",
    "STORAGE_EMULATOR_HOST",
    "FIREBASE_AUTH_EMULATOR_HOST",
    "FSSPEC_S3_ENDPOINT_URL",
    "FSSPEC_S3_KEY",
    "RCLONE_CONFIG_DATA_URL",
    "CPL_VSIL_CURL_USERNAME",
    "VIRTUAL_ENV",
    "LIBVIRT_DEFAULT_URI",
    "VIRSH_DEFAULT_CONNECT_URI",
    "PMI_PORT",
    "CCACHE_URL",
    "SCCACHE_BUCKET",
    "BUILDKIT_HOST",
    "ANSIBLE_REMOTE_USER",
    "PULUMI_BACKEND_URL",
    "OTEL_AGENT_HOST",
    "DD_TRACE_AGENT_URL",
    "FOO_PATH",
    "FOO_HOOK",
    "FOO_COMMAND",
    "FOO_PLUGIN",
    "FOO_OPTIONS",
    "FOO_FILE",
    "FOO_DIR",
    "FOO_PROXY",
    "FOO_CA_BUNDLE",
    "FOO_PRELOAD",
]


@pytest.mark.parametrize("name", USUAL)
def test_what_senders_usually_send_passes(name: str) -> None:
    """An app's own names and well-known tokens pass with nothing configured."""
    assert passes(name)


@pytest.mark.parametrize("name", EVIL)
def test_what_loads_code_or_moves_trust_does_not(name: str) -> None:
    """Nothing that a tool takes code, an address or an identity from passes by itself; nor what has no known shape."""
    assert not passes(name)


@pytest.mark.parametrize("name", [*USUAL, "SOMETHING", "FOO_PATH", "A__B", "x"])
def test_a_star_lets_everything_of_ones_own_pass(name: str) -> None:
    """The operator may open the shape."""
    assert passes(name, ["*"])


@pytest.mark.parametrize("pattern", ["*", "*_URL", "*URL", "P*", "**"])
def test_a_pattern_reaches_a_family_only_by_its_name(pattern: str) -> None:
    """A wide pattern lets no index of packages pass; one that names the family does."""
    assert not passes("PIP_INDEX_URL", [pattern])
    assert passes("PIP_INDEX_URL", [pattern, "PIP_*"])
    assert passes("pip_index_url", ["PIP_INDEX_URL"])


def test_a_pattern_is_no_expression() -> None:
    """Only the star means something, and a pattern stands for the whole name."""
    assert not passes("FOO_PATHS", ["FOO_PATH"])
    assert not passes("XFOO_PATH", ["FOO_PATH"])
    assert passes("FOO_A_PATH", ["FOO_*_PATH"])
