#!/bin/sh
# Before the files are unpacked (deb: install|upgrade; rpm: 1 or more). Refuses where nothing could come of it.
set -e

if [ -e /opt/credential-agent/current ] && [ ! -e /usr/lib/credential-agent/install.sh ]; then
  # Both would think that what is there is theirs; the next upgrade of either would be a downgrade.
  echo "credential-agent: error: it was installed here by install.sh. Take that off first: install.sh uninstall" >&2
  echo "credential-agent: (configuration and state are kept, and the package takes them as they are)" >&2
  exit 1
fi
