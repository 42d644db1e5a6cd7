#!/usr/bin/env bash
# Makes the packages: a .deb and an .rpm with the locked environment inside, for each Python that the releases have; the
# list of what is in them (CycloneDX) and their checksums. The same source gives the same bytes. Needs no root and no
# Python but its own.
#
#   package.sh DIRECTORY [--format deb|rpm]...
#
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
# Debian 12, Ubuntu 22.04 and Amazon Linux 2023; Ubuntu 24.04; Debian 13.
readonly PYTHONS=(3.11 3.12 3.13)
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
formats=()
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || die "$1 needs a value" 64
  case $1 in
    --format) case $2 in deb | rpm) formats+=("$2") ;; *) die "--format: expected deb or rpm, got $2" 64 ;; esac ;;
    *) die "$1: unknown option; --help lists them" 64 ;;
  esac
  shift 2
done
[ ${#formats[@]} -gt 0 ] || formats=(deb rpm)
case $machine in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) die "MACHINE: expected x86_64 or aarch64, got $machine" 64 ;;
esac
if [ -n "${SIGNING_KEY:-}" ]; then
  [ -r "$SIGNING_KEY" ] || die "SIGNING_KEY: expected an OpenPGP secret key, and $SIGNING_KEY cannot be read" 66
  SIGNING_KEY=$(readlink -f "$SIGNING_KEY")
fi
command -v "$nfpm" >/dev/null || die "$nfpm: not found; make packages builds it, or see https://nfpm.goreleaser.com"
[ -x "$build/bin/uv" ] || die "$build: not an environment of requirements/build.txt; make packages makes it"
build=$(cd "$build" && pwd)

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/agent/__init__.py")
[ -n "$version" ] || die "agent/__init__.py: no __version__"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# -- the environment ---------------------------------------------------------------------------------------------------

say "building the wheel of $version"
# Of the tree around this script, wherever it is called.
(cd "$root" && exec "$build/bin/python" -m hatchling build --target wheel --directory "$work/wheel") >/dev/null 2>"$work/log" ||
  { cat "$work/log" >&2; die "the wheel could not be built" 70; }
wheel=$(echo "$work"/wheel/credential_agent-*.whl)

install_into() { # DIRECTORY OPTION...
  local into=("$build/bin/uv" pip install --quiet --no-config --no-deps --target "$@")
  "${into[@]}" --only-binary :all: --require-hashes -r "$root/requirements/runtime.txt"
  "${into[@]}" --no-index "$wheel"
}

# What two Pythons have is the same file, and modules that are compiled for one have its name in theirs: anything else ends
# the build. A package's list of its files names those for every Python.
merge() { # FROM TO
  local file
  { diff -rq "$1" "$2" || [ $? = 1 ]; } | sed -n "s#^Files $1/\(.*\) and .* differ\$#\1#p" >"$work/differ"
  while read -r file; do
    case $file in
      *.dist-info/RECORD) awk -F , '!seen[$1]++' "$2/$file" "$1/$file" >"$work/record" && mv "$work/record" "$1/$file" ;;
      *.dist-info/WHEEL) cp "$2/$file" "$1/$file" ;; # the list has the hash of the first one's
      *) die "$file: not the same for every Python: one package cannot have both" 70 ;;
    esac
  done <"$work/differ"
  cp -R "$1/." "$2/"
}

# The packages of each Python, in one place. The install script makes an environment of them, for the Python that is there.
release() { # DIRECTORY
  local python site=$1/site-packages one=$work/one
  mkdir -p "$site"
  for python in "${PYTHONS[@]}"; do
    say "the environment for Python $python"
    install_into "$one" --link-mode copy --python-version "$python" --python-platform "$machine-manylinux_2_34"
    # Programs of others, and where the wheel lay on this machine.
    rm -rf "${one:?}/bin" "$one/.lock"
    find "$one" -name direct_url.json -delete -o -name uv_cache.json -delete
    sed -i -e '/direct_url\.json,/d' -e '/uv_cache\.json,/d' -e '\#^\(\.\./\)*bin/#d' "$one"/*.dist-info/RECORD
    merge "$one" "$site"
    rm -rf "$one"
  done
  printf '%s\n' "${PYTHONS[@]}" >"$1/.pythons"
  printf 'credential_agent-%s-%s\n' "$version" "$(cat "$wheel" "$root/requirements/runtime.txt" | sha256sum | cut -c1-12)" \
    >"$1/.release"
  # What the release is, for a machine on which files of another one lie among these.
  touch "$1/.files"
  (cd "$1" && find . ! -type d -print | sort) >"$work/files"
  mv "$work/files" "$1/.files"
}

# By the program itself, with what it needs for the Python here.
say "manual pages and completions"
install_into "$work/here" --python "$build/bin/python"
PYTHONPATH=$work/here "$build/bin/python" "$here/package/pages.py" "$work/pages" || die "the manual pages could not be made" 70
gzip --no-name --best "$work"/pages/man/*.1

# -- the packages ------------------------------------------------------------------------------------------------------

rm -f "$target"/credential-agent[_-]"$version"[_-]*.{deb,rpm} "$target/credential-agent-$version.cdx.json" "$target/SHA256SUMS"
tree=$work/tree
release "$tree/release"
cp -R "$root/systemd" "$tree/systemd"
cp -R "$work/pages" "$tree/pages"
install -m 0755 "$here/install.sh" "$tree/install.sh"
find "$tree" -exec touch --no-dereference --date="@$epoch" {} +
find "$tree" -type d -exec chmod 0755 {} + -o -type f -perm /0111 -exec chmod 0755 {} + -o -type f -exec chmod 0644 {} +

"$build/bin/cyclonedx-py" requirements --output-reproducible --output-format JSON --pyproject "$root/pyproject.toml" \
  --mc-type application --output-file "$target/credential-agent-$version.cdx.json" \
  "$root/requirements/runtime.txt" 2>"$work/log" || { cat "$work/log" >&2; die "the list of contents could not be made" 70; }

sed -e "s#\${TREE}#$tree#; s#\${SCRIPTS}#$here/package#; s#\${ROOT}#$root#; s#\${VERSION}#$version#" \
  -e "s#\${ARCHITECTURE}#$architecture#; s#\${SIGNING_KEY}#${SIGNING_KEY:-}#" "$here/package/nfpm.yaml" >"$work/nfpm.yaml"
for format in "${formats[@]}"; do
  "$nfpm" package --config "$work/nfpm.yaml" --packager "$format" --target "$target" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; die "nfpm could not make the $format" 70; }
done
cd "$target"
shopt -s nullglob
sha256sum -- *.deb *.rpm *.cdx.json | tee SHA256SUMS
