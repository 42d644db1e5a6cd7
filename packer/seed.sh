#!/usr/bin/env bash
# Makes the way into the disk of a qemu build: a key of its own for each build, and cloud-init's data with its public half.
# Needs ssh-keygen; no root.
#
#   seed.sh DIRECTORY
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in -h | --help) usage && exit 0 ;; '' | -*) usage >&2 && exit 64 ;; esac
[ $# -eq 1 ] || { usage >&2; exit 64; }
command -v ssh-keygen >/dev/null || { echo "seed.sh: error: ssh-keygen is needed; on Debian and Ubuntu: apt-get install openssh-client" >&2; exit 69; }
umask 077
mkdir -p "$1"
rm -f "$1/key" "$1/key.pub"
# ECDSA: what every sshd and every Packer speaks.
ssh-keygen -q -t ecdsa -N '' -C packer -f "$1/key"
printf 'instance-id: packer-%s\n' "$(date +%s)" >"$1/meta-data"
cat >"$1/user-data" <<DATA
#cloud-config
ssh_pwauth: false
users:
  - name: packer
    shell: /bin/bash
    sudo: ALL=(ALL) NOPASSWD:ALL
    lock_passwd: true
    ssh_authorized_keys:
      - $(cat "$1/key.pub")
DATA
echo "$1"
