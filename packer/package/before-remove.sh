#!/bin/sh
# Before the files are taken away (deb: remove|upgrade|deconfigure; rpm: 0 when the last one goes).
set -e

case ${1:-} in
  remove | 0) exec /usr/lib/credential-agent/install.sh uninstall ;;
esac
