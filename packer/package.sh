#!/usr/bin/env bash
# Makes the packages: a .deb and an .rpm for each Python asked for, with the locked environment inside, the list of what
# is in them (CycloneDX) and their checksums. The same source gives the same bytes. Needs no root and no Python but its own.
#
#   package.sh DIRECTORY [--python VERSION]... [--format deb|rpm]...
#
#   --python VERSION   of the machines that install it: 3.11 (Debian 12, Ubuntu 22.04, Amazon Linux 2023), 3.12
#                      (Ubuntu 24.04), 3.13 (Debian 13); may be repeated (default: 3.11)
#   --format FORMAT    deb or rpm (default: both)
#
#   NFPM=FILE          the nfpm program (default: in PATH)
#   BUILD=DIRECTORY    the environment of requirements/build.txt (default: .venv-build; `make packages` makes both)
#   MACHINE=NAME       x86_64 or aarch64 (default: this machine's)
#   SIGNING_KEY=FILE   sign with this OpenPGP secret key; its passphrase in NFPM_PASSPHRASE
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=${BUILD:-$root/.venv-build}
nfpm=${NFPM:-nfpm}
machine=${MACHINE:-$(uname -m)}
# When it was made is when its source was: of two builds of one commit every byte is the same.
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 1767225600)}
export SOURCE_DATE_EPOCH=$epoch TZ=UTC LC_ALL=C.UTF-8

say() { printf 'package: %s\n' "$*" >&2; }
die() { say "error: $1"; exit "${2:-69}"; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

case ${1:-} in -h | --help) usage && exit 0 ;; '' | -*) usage >&2 && exit 64 ;; esac
mkdir -p "$1"
target=$(cd "$1" && pwd)
shift
pythons=() formats=()
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || die "$1 needs a value" 64
  case $1 in
    --python) [[ $2 =~ ^3\.[0-9]+$ ]] || die "--python: expected a version such as 3.11, got $2" 64; pythons+=("$2") ;;
    --format) case $2 in deb | rpm) formats+=("$2") ;; *) die "--format: expected deb or rpm, got $2" 64 ;; esac ;;
    *) die "$1: unknown option; --help lists them" 64 ;;
  esac
  shift 2
done
[ ${#pythons[@]} -gt 0 ] || pythons=(3.11)
[ ${#formats[@]} -gt 0 ] || formats=(deb rpm)
case $machine in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) die "MACHINE: expected x86_64 or aarch64, got $machine" 64 ;;
esac
command -v "$nfpm" >/dev/null || die "$nfpm: not found; make packages builds it, or see https://nfpm.goreleaser.com"
[ -x "$build/bin/uv" ] || die "$build: not an environment of requirements/build.txt; make packages makes it"

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/agent/__init__.py")
[ -n "$version" ] || die "agent/__init__.py: no __version__"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# -- the environment ---------------------------------------------------------------------------------------------------

say "building the wheel of $version"
"$build/bin/python" -m hatchling build --target wheel --directory "$work/wheel" >/dev/null 2>"$work/log" ||
  { cat "$work/log" >&2; die "the wheel could not be built" 70; }
wheel=$(echo "$work"/wheel/credential_agent-*.whl)

install_into() { # DIRECTORY OPTION...
  local into=("$build/bin/uv" pip install --quiet --no-config --no-deps --target "$@")
  "${into[@]}" --only-binary :all: --require-hashes -r "$root/requirements/runtime.txt"
  "${into[@]}" --no-index "$wheel"
}

# As `venv` lays one out, for an interpreter that this machine may not have: packages, three links, one file of words.
release() { # PYTHON DIRECTORY
  local python=$1 tree=$2 site name
  name="credential_agent-$version-py${python/./}-$(cat "$wheel" "$root/requirements/runtime.txt" | sha256sum | cut -c1-12)"
  site=$tree/lib/python$python/site-packages
  mkdir -p "$tree/bin" "$site"
  install_into "$site" --link-mode copy --python-version "$python" --python-platform "$machine-manylinux_2_34"
  # Programs of others, and where the wheel lay on this machine.
  rm -rf "${site:?}/bin" "$site/.lock"
  find "$site" -name direct_url.json -delete -o -name uv_cache.json -delete
  sed -i -e '/direct_url\.json,/d' -e '/uv_cache\.json,/d' -e '\#^\(\.\./\)*bin/#d' "$site"/*.dist-info/RECORD
  ln -s "/usr/bin/python$python" "$tree/bin/python$python"
  ln -s "python$python" "$tree/bin/python3"
  ln -s "python$python" "$tree/bin/python"
  ln -s lib "$tree/lib64"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$python" >"$tree/pyvenv.cfg"
  # By the name that the install script gives it: what runs goes on from its own files while the next one is put beside it.
  cat >"$tree/bin/credential-agent" <<WORDS
#!/opt/credential-agent/releases/$name/bin/python
import sys
from agent.cli import main
sys.exit(main())
WORDS
  chmod 0755 "$tree/bin/credential-agent"
  printf '%s\n' "$name" >"$tree/.release"
  # What the release is, for a machine on which files of another one lie among these.
  touch "$tree/.files"
  (cd "$tree" && find . ! -type d -print | sort) >"$work/files"
  mv "$work/files" "$tree/.files"
}

# By the program itself, with what it needs for the Python here.
say "manual pages and completions"
install_into "$work/here" --python "$build/bin/python"
PYTHONPATH=$work/here "$build/bin/python" "$here/package/pages.py" "$work/pages" || die "the manual pages could not be made" 70
gzip --no-name --best "$work"/pages/man/*.1

# -- the packages ------------------------------------------------------------------------------------------------------

rm -f "$target"/credential-agent[_-]"$version"[+_-]*.{deb,rpm,cdx.json} "$target/SHA256SUMS"
for python in "${pythons[@]}"; do
  tree=$work/py${python/./}
  say "the environment for Python $python"
  release "$python" "$tree/release"
  mkdir -p "$tree/systemd"
  cp -R "$root"/systemd/. "$tree/systemd/"
  cp -R "$work/pages" "$tree/pages"
  install -m 0755 "$here/install.sh" "$tree/install.sh"
  find "$tree" -exec touch --no-dereference --date="@$epoch" {} +
  find "$tree" -type d -exec chmod 0755 {} + -o -type f -perm /0111 -exec chmod 0755 {} + -o -type f -exec chmod 0644 {} +

  "$build/bin/cyclonedx-py" requirements --output-reproducible --output-format JSON --pyproject "$root/pyproject.toml" \
    --mc-type application --output-file "$target/credential-agent-$version-py${python/./}.cdx.json" \
    "$root/requirements/runtime.txt" 2>"$work/log" || { cat "$work/log" >&2; die "the list of contents could not be made" 70; }

  for format in "${formats[@]}"; do
    sed -e "s#\${TREE}#$tree#; s#\${SCRIPTS}#$here/package#; s#\${ROOT}#$root#; s#\${VERSION}#$version#" \
      -e "s#\${PYTHON}#$python#; s#\${PYTAG}#py${python/./}#; s#\${ARCHITECTURE}#$architecture#" \
      -e "s#\${SIGNING_KEY}#${SIGNING_KEY:-}#" "$here/package/nfpm.yaml" >"$work/nfpm.yaml"
    "$nfpm" package --config "$work/nfpm.yaml" --packager "$format" --target "$target" >"$work/log" 2>&1 ||
      { cat "$work/log" >&2; die "nfpm could not make the $format" 70; }
  done
done
cd "$target"
shopt -s nullglob
sha256sum -- *.deb *.rpm *.cdx.json | tee SHA256SUMS
