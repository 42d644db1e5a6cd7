#!/usr/bin/env bash
# The step of an image's build that installs the agent from what was uploaded, and checks it. Run by build.pkr.hcl, as root,
# in the machine that becomes the image.
#
#   provision.sh PAYLOAD      PAYLOAD/etc/: the configuration (*.toml) and the signers' public keys (all other files)
#
# INSTALL_OPTIONS: further options of install.sh, separated by spaces.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in -h | --help) usage && exit 0 ;; '' | -*) usage >&2 && exit 64 ;; esac
payload=$1
read -r -a options <<<"${INSTALL_OPTIONS:-}"
for file in "$payload"/etc/*; do
  case $file in
    *.toml) options+=(--config "$file") ;;
    *) options+=(--signer "$file") ;;
  esac
done
bash "$payload/install.sh" --no-start "${options[@]}"
bash "$payload/validate.sh"
