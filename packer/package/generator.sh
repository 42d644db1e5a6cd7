#!/usr/bin/env bash
# Gathers what makes the manual pages and completions into DIRECTORY: pages.py, the date of the source (theirs, as in
# packages), and the locked click-man.
#
#   generator.sh DIRECTORY PYTHON [OPTION...]    PYTHON has pip; OPTION: of its `download`
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$1 python=$2
shift 2
mkdir "$target"
cp "$here/pages.py" "$target/"
git -C "$here" log -1 --format=%ct >"$target/epoch" 2>/dev/null || rm -f "$target/epoch"
sed -n '/^click-man==/,/[^\\]$/p' "$here/../../requirements/build.txt" >"$target/lock.txt"
"$python" -m pip download --quiet --no-input --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
  "$@" --dest "$target" -r "$target/lock.txt"
