#!/bin/sh
# Before the files are taken away (deb: remove|upgrade|deconfigure; rpm: 0 when the last one goes).
set -e

case ${1:-} in
  remove) exec /usr/lib/credential-agent/install.sh uninstall ;;
  0) if /usr/lib/credential-agent/install.sh uninstall; then exit 0; fi ;;
  *) exit 0 ;;
esac

# rpm keeps the package then, and calls nothing that would put back to work what was stopped halfway (dpkg does: abort-remove).
OPTIONS=
# shellcheck disable=SC1091
[ ! -r /etc/default/credential-agent ] || . /etc/default/credential-agent
start=
[ -d /run/systemd/system ] || start=--no-start
# shellcheck disable=SC2086
/usr/lib/credential-agent/install.sh --release /usr/lib/credential-agent/release --no-packages $start $OPTIONS || true
exit 1
