#!/usr/bin/env bash
# The last step of an image's build: takes away what belongs to the machine it was built on, so that its copies begin with
# their own. Run by build.pkr.hcl, as root, in the machine that becomes the image.
#
#   cleanup.sh PAYLOAD        the upload, which goes too
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in -h | --help) usage && exit 0 ;; '' | -*) usage >&2 && exit 64 ;; esac
rm -rf "$1"
# Whoever the configuration names as a worker has a number by now: the first boot refuses it before anything else is known.
# By its path: where sudo looks for programs, /usr/local/bin need not be (secure_path of RHEL and Amazon Linux).
agent=/opt/credential-agent/bin/credential-agent
[ ! -x "$agent" ] || "$agent" redirect record
systemctl stop credential-agent.service credential-agent.socket credential-agent-ipv6.socket \
  credential-agent-control.socket credential-agent-courier.socket \
  credential-agent-serve.service credential-agent-serve.socket 2>/dev/null || true
# The identity, the sticky memory and the sealed bundle of this machine; the units make the directories anew.
find /var/lib/credential-agent -mindepth 1 -delete
rm -rf /run/credential-agent

# The next boot is a first boot: users, keys and host name from its own metadata.
if command -v cloud-init >/dev/null; then cloud-init clean --logs --seed; fi
rm -f /etc/ssh/ssh_host_*
# cloud-init gives root the builder's key, with "Please login as the user ..." for a command: the next boot writes its own.
if [ -f /root/.ssh/authorized_keys ]; then
  sed -i '/Please login as the user/d' /root/.ssh/authorized_keys
  [ -s /root/.ssh/authorized_keys ] || rm -f /root/.ssh/authorized_keys
fi
truncate --size 0 /etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret

# What the build said, and what its user typed.
if command -v journalctl >/dev/null; then journalctl --quiet --rotate && journalctl --quiet --vacuum-time=1s; fi
rm -rf /var/log/journal/* /root/.bash_history /home/*/.bash_history /root/.cache
if command -v apt-get >/dev/null; then apt-get clean; fi
if command -v dnf >/dev/null; then dnf --quiet clean all; fi
sync
