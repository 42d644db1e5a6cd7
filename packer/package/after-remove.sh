#!/bin/sh
# After the files are gone (deb: purge too). What a person wrote and what the worker knows goes with a purge only; rpm has none.
set -e

case ${1:-} in
  purge)
    rm -rf /etc/credential-agent /var/lib/credential-agent
    if getent passwd credential-agent >/dev/null; then userdel credential-agent || true; fi
    for name in credential-agent credential-workers credential-operators; do
      if getent group "$name" >/dev/null; then groupdel "$name" || true; fi
    done
    ;;
esac
