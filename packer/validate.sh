#!/usr/bin/env bash
# Fails, and with it the build of an image, when the agent that was just installed would not work. Needs root; runs in the
# image, with systemd (a builder's virtual machine) or without (a chroot).
#
#   validate.sh               takes away the state that the trial leaves, and any other: not for a worker that works
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in '') ;; -h | --help) usage && exit 0 ;; *) usage >&2 && exit 64 ;; esac

failures=0
check() { # WHAT COMMAND...
  local what=$1 && shift
  if output=$("$@" 2>&1); then
    printf 'ok    %s\n' "$what"
  else
    printf 'FAIL  %s\n%s\n' "$what" "$output" >&2
    failures=$((failures + 1))
  fi
}

nothing_writable() { # by the service: root owns it all, nobody else may write
  local found
  found=$(find /opt/credential-agent -xdev \( ! -user root -o -perm /022 \) ! -type l -print -quit)
  [ -z "$found" ] || { echo "$found is not root's alone"; return 1; }
}

no_secret() { # trust anchors only: a private key in an image is everybody's
  local found
  found=$(grep -rlE '"(d|k)"[[:space:]]*:|PRIVATE KEY' /etc/credential-agent /etc/credstore 2>/dev/null || true)
  [ -z "$found" ] || { echo "a private key is in the image: $found"; return 1; }
}

no_state() { # what a bundle decided on this machine is not the business of its copies
  [ -z "$(ls -A /var/lib/credential-agent 2>/dev/null)" ] || { echo "/var/lib/credential-agent is not empty"; return 1; }
}

units_verify() {
  local said without='Failed to resolve specifiers' # a chroot may have no /proc, hence no name of the boot
  local units=(credential-agent.service credential-agent.socket credential-agent-control.socket
    credential-agent-courier.socket credential-agent-redirect.service credential-agent.target
    credential-agent-serve.service credential-agent-serve.socket)
  # Where the builder's kernel has no IPv6 (or nobody can tell), systemd finds that socket empty.
  if [ -e /proc/net/if_inet6 ]; then units+=(credential-agent-ipv6.socket); else without+='|credential-agent-ipv6\.socket'; fi
  said=$(systemd-analyze verify "${units[@]}" 2>&1 | grep credential-agent | grep -vE "$without" || true)
  [ -z "$said" ] || { echo "$said"; return 1; }
}

agent=/opt/credential-agent/bin/credential-agent
[ -d /run/credential-agent ] || systemd-tmpfiles --create /etc/tmpfiles.d/credential-agent.conf
check "the program starts" "$agent" --version
check "the configuration is acceptable" setpriv --reuid credential-agent --regid credential-agent --init-groups "$agent" check
check "the units are enabled" systemctl is-enabled credential-agent.socket credential-agent-ipv6.socket credential-agent.service
check "systemd accepts the units" units_verify
check "nothing is writable by the service" nothing_writable
if [ "${ALLOW_SECRETS:-no}" = no ]; then check "no private key is in the image" no_secret; fi
if [ -d /run/systemd/system ]; then
  check "the agent answers" systemctl start credential-agent.service
  check "its status can be read" sh -c "$agent status --json >/dev/null || [ \$? = 69 ]"
  if systemctl --quiet is-enabled credential-agent-redirect.service; then
    check "the redirect loads" systemctl start credential-agent-redirect.service
    check "a worker's request arrives, a stranger's does not" "$agent" redirect check
  fi
  systemctl stop credential-agent.service
else
  check "the rules can be made" sh -c "$agent redirect apply --print >/dev/null || command -v nft"
fi
# The copies begin with nothing of this machine.
rm -rf /var/lib/credential-agent/* /run/credential-agent/token
check "no state is in the image" no_state
[ "$failures" = 0 ] || { echo "validate: $failures of the checks failed" >&2; exit 1; }
