#!/bin/sh
# After the files are gone (deb: purge too). What a person wrote and what the worker knows goes with a purge only; rpm has none.
set -e

case ${1:-} in
  purge)
    if [ -e /opt/credential-agent/current ]; then
      # Installed by install.sh since the package was removed: all this is at work there.
      echo "credential-agent: it is installed here by install.sh: its configuration, state and users are kept" >&2
      exit 0
    fi
    rm -rf /etc/credential-agent /var/lib/credential-agent /etc/systemd/system/credential-agent*.d
    for name in credential-agent credential-agent-serve; do
      if getent passwd "$name" >/dev/null; then userdel "$name" || true; fi
    done
    for name in credential-agent credential-agent-serve credential-workers credential-operators credential-metrics; do
      if getent group "$name" >/dev/null; then groupdel "$name" || true; fi
    done
    ;;
esac
