"""Which of a bundle's variables reach the programs of a worker.

A variable is a way to run code (a preloaded library, a plug-in, an index of packages) and to move trust (a proxy,
a CA, an endpoint), and every tool that is installed brings more of them than a list could name. So names pass by their
shape: a prefix of one's own and a last word that says that a value is meant: ``MYAPP_TOKEN``, ``DATABASE_URL``.
A name of a family of tools that takes code or addresses from its variables does not pass, whatever its last word,
except the few credentials listed below. Everything else passes only where the operator's patterns say so.

Variables that no bundle may carry at all are refused before this (``agent.bundle.claims``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_SHAPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)+\Z")
"""Single underscores only: two make a path in a framework's tree of settings (Dask, Airflow, Spark's operators)."""

_VALUES_TEXT: Final = """
    TOKEN KEY SECRET PASSWORD PASSWD PASS PASSPHRASE PWD CREDENTIAL CREDENTIALS JWT PAT SALT USER USERNAME LOGIN
    EMAIL ID ACCOUNT TENANT ORG ORGANIZATION TEAM ENTITY ROLE OWNER URL URI DSN HOST HOSTNAME PORT DATABASE DB
    SCHEMA TABLE BUCKET CONTAINER QUEUE TOPIC STREAM REGION LOCATION ZONE PROJECT NAMESPACE CLUSTER STAGE ENV
    ENVIRONMENT TENANCY WORKSPACE RUN EXPERIMENT
"""
_VALUES: Final = frozenset(_VALUES_TEXT.split())

# Families whose variables load code, choose a server to trust, or say who a program is.
_FAMILIES_TEXT: Final = """
    LD_ DYLD_ GLIBC_ MALLOC_ BASH ZSH_ KSH_ PYTHON PYENV_ PIP_ PIPX_ PIPENV_ UV_ POETRY_ PDM_ TWINE_ CONDA_
    MAMBA_ VIRTUALENV_ NODE_ NPM_ YARN_ PNPM_ BUN_ DENO_ ELECTRON_ PERL RUBY GEM_ BUNDLE_ RAILS_ PHP_ COMPOSER_
    R_ RSTUDIO_ RENV_ JULIA_ LUA_ GO_ CARGO_ RUST JAVA_ JDK_ JRE_ JVM_ MAVEN_ GRADLE_ SBT_ DOTNET_ CORECLR_
    COMPLUS_ NUGET_ ERL_ ELIXIR_ MIX_ OPAM_ GUILE_ GIT_ GH_ SSH_ GPG_ HG_ SVN_ SUDO_ SYSTEMD_ DBUS_ XDG_
    XAUTHORITY_ DISPLAY_ LESS_ MAN_ TERM_ LC_ NLS_ NSS_ KRB5_ SASL_ OPENSSL_ SSL_ TLS_ CURL_ WGET_ REQUESTS_
    HTTP_ HTTPS_ FTP_ ALL_ NO_ PROXY_ RES_ LOCAL_ DASK_ DISTRIBUTED_ JUPYTER IPYTHON RAY_ SPARK_ PYSPARK_
    HADOOP_ HIVE_ FLINK_ KAFKA_ AIRFLOW_ PREFECT_ DAGSTER_ LUIGI_ OMPI_ OPAL_ ORTE_ PMIX_ PRTE_ MPI_ MPICH_
    I_MPI_ UCX_ UCC_ FI_ NCCL_ CUDA_ NVIDIA_ ROCM_ HIP_ HSA_ GPU_ TF_ XLA_ TORCH_ JAX_ OMP_ KMP_ SLURM_ SBATCH_
    SRUN_ PBS_ SGE_ LSF_ KUBE KUBERNETES_ DOCKER_ PODMAN_ BUILDAH_ CONTAINER_ CONTAINERD_ HELM_ TERRAFORM_
    TF_VAR_ AWS_ GOOGLE_ GCLOUD_ CLOUDSDK_ GCE_ GCS_ AZURE_ ARM_ MSI_ IDENTITY_ BOTO_ S3_ STORAGE_EMULATOR_
    CREDENTIAL_AGENT_ CREDENTIALS_ NOTIFY_ LISTEN_ WATCHDOG_ MAIN_ GTK_ QT_ GIO_ GST_ ALSA_ VK_ LIBGL_ EGL_
    MESA_ OCL_ HF_ HUGGINGFACE_ TRANSFORMERS_ WANDB_ MLFLOW_ OPENAI_ ANTHROPIC_ VAULT_ CONSUL_ NOMAD_
    DATABRICKS_ SNOWFLAKE_ SENTRY_ COMET_ NEPTUNE_ CLEARML_ KAGGLE_ PG SQLITE_ ODBC ORACLE_ TNS_ MYSQL_
    BIGQUERY_EMULATOR_ BIGTABLE_EMULATOR_ DATASTORE_EMULATOR_ FIRESTORE_EMULATOR_ PUBSUB_EMULATOR_
    SPANNER_EMULATOR_ FIREBASE_ FSSPEC_ RCLONE_ CPL_ VIRTUAL_ENV LIBVIRT_ VIRSH_ PMI_ CCACHE_ SCCACHE_ BUILDKIT_
    ANSIBLE_ PULUMI_ OTEL_ DD_ ELASTIC_APM_ NEW_RELIC_ BAZELISK_ PLAYWRIGHT_ PUPPETEER_ SELENIUM_ SE_DRIVER_
    CELERY_ RQ_ METAFLOW_ FLYTE ZENML_ SPACK_ PIXI_ MISE_ HOMEBREW_ NIX_ FLUX_ HYDRA_ NEURON_ TORCHELASTIC_
"""
_FAMILIES: Final = tuple(_FAMILIES_TEXT.split())

# Names of these families that pass: credentials, and names of one's own resources.
_OF_FAMILIES_TEXT: Final = """
    AWS_REGION AWS_DEFAULT_REGION AWS_DEFAULT_OUTPUT AWS_RETRY_MODE AWS_MAX_ATTEMPTS AWS_SDK_UA_APP_ID
    AWS_ACCOUNT_ID GOOGLE_CLOUD_PROJECT GOOGLE_CLOUD_REGION GOOGLE_CLOUD_LOCATION GOOGLE_CLOUD_ZONE
    GOOGLE_CLOUD_QUOTA_PROJECT GOOGLE_API_KEY GCLOUD_PROJECT S3_BUCKET GCS_BUCKET HF_TOKEN HUGGINGFACE_TOKEN
    HUGGINGFACE_HUB_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY WANDB_ENTITY WANDB_PROJECT WANDB_RUN_ID
    MLFLOW_RUN_ID MLFLOW_EXPERIMENT_ID MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    OPENAI_API_KEY ANTHROPIC_API_KEY COMET_API_KEY NEPTUNE_API_TOKEN KAGGLE_USERNAME KAGGLE_KEY DATABRICKS_TOKEN
    VAULT_TOKEN SNOWFLAKE_USER SNOWFLAKE_PASSWORD SNOWFLAKE_ACCOUNT SENTRY_DSN GH_TOKEN PREFECT_API_KEY
    NEW_RELIC_LICENSE_KEY
    AZURE_TENANT_ID AZURE_SUBSCRIPTION_ID PGUSER PGPASSWORD PGDATABASE MYSQL_USER MYSQL_PASSWORD MYSQL_DATABASE
"""
_OF_FAMILIES: Final = frozenset(_OF_FAMILIES_TEXT.split())


def passes(name: str, patterns: Iterable[str] = ()) -> bool:
    """Whether a variable of a bundle is passed on.

    Args:
        name: compared without regard to case, since ``http_proxy`` works like ``HTTP_PROXY``.
        patterns: the operator's, with ``*`` for any rest. One that begins with a ``*`` matches no family of tools: to
            let ``PIP_INDEX_URL`` pass, a pattern must name pip.
    """
    upper = name.upper()
    family = max((prefix for prefix in _FAMILIES if upper.startswith(prefix)), key=len, default="")
    if upper in _OF_FAMILIES or any(_matches(upper, pattern.upper(), family) for pattern in patterns):
        return True
    return not family and _SHAPE.match(upper) is not None and upper.rpartition("_")[2] in _VALUES


def _matches(name: str, pattern: str, family: str) -> bool:
    if not pattern.startswith(family):
        return False
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
