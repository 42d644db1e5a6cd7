#!/bin/sh
# After the files are unpacked (deb: configure|abort-...; rpm: 1 or more). Everything or nothing: a release that does not
# start, or refuses the configuration, leaves the one before at work, and the package says that it is not configured.
set -e

case ${1:-} in
  configure | triggered | [0-9]*) ;;
  # To take it off was begun and did not work: units are stopped, or gone.
  abort-remove) ;;
  *) exit 0 ;;
esac

OPTIONS=
# shellcheck disable=SC1091
[ ! -r /etc/default/credential-agent ] || . /etc/default/credential-agent
start=
[ -d /run/systemd/system ] || start=--no-start

# shellcheck disable=SC2086
exec /usr/lib/credential-agent/install.sh --release /usr/lib/credential-agent/release --no-packages $start $OPTIONS
