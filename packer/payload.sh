#!/usr/bin/env bash
# Gathers everything that install.sh needs into one directory: the wheel, the locked dependencies with their hashes, the
# units, what makes the manual pages. With a wheelhouse an image is built without any package index. Needs no root.
#
#   payload.sh DIRECTORY [--wheelhouse VERSION]...    VERSION: of the target's Python, such as 3.11; may be repeated
set -euo pipefail
# What the caller's shell says of other Pythons must not leak into this one.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
machine=${MACHINE:-$(uname -m)}
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in -h | --help) usage && exit 0 ;; '' | -*) usage >&2 && exit 64 ;; esac
target=$1 && shift
versions=()
while [ $# -gt 0 ]; do
  [ "$1" = --wheelhouse ] || { echo "payload: error: $1: unknown option; --help lists them" >&2 && exit 64; }
  [ $# -ge 2 ] || { echo "payload: error: $1 needs a value: the version of the target's Python, such as 3.11" >&2 && exit 64; }
  versions+=("$2")
  shift 2
done
# What builds the wheel is locked, and in an environment of its own (Debian's and Ubuntu's python3 has no pip either).
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch" >&2 || { echo "payload: $python has no venv module: apt-get install python3-venv" >&2 && exit 69; }
python=$scratch/bin/python
"$python" -m pip install --quiet --no-input --disable-pip-version-check --only-binary :all: --require-hashes \
  -r "$here/../requirements/wheel.txt"
mkdir -p "$target"
rm -rf "$target"/credential_agent-*.whl "$target/systemd" "$target/pages"
"$python" -m pip wheel --quiet --no-input --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$target" "$here/.."
cp "$here/../requirements/runtime.txt" "$target/requirements.txt"
cp -R "$here/../systemd" "$target/systemd"
install -m 0755 "$here/install.sh" "$here/validate.sh" "$target/"
"$here/package/generator.sh" "$target/pages" "$python"
for version in ${versions[@]+"${versions[@]}"}; do # as macOS' bash 3.2 has it, for none too
  # What the target can use: wheels for its Python, glibc 2.17 to 2.34 (every system that install.sh knows).
  "$python" -m pip download --quiet --no-input --disable-pip-version-check --require-hashes --only-binary :all: \
    --implementation cp --python-version "$version" \
    --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
    --platform "manylinux2014_$machine" --platform "manylinux_2_5_$machine" --platform "manylinux1_$machine" \
    --dest "$target/wheelhouse" -r "$here/../requirements/runtime.txt"
done
echo "$target"
