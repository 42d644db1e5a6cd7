#!/bin/sh
# Runs inside the image that desk.sh built: who gets which identity?
set -eu
agent=/opt/credential-agent/current/bin
source='import boto3; c = boto3.Session().get_credentials(); print(c.get_frozen_credentials().access_key if c else "none")'
say() { echo "desk-check: $*"; }
wanted() { # WHAT EXPECTED GOT
  if [ "$2" = "$3" ]; then say "ok: $1: $3"; else say "FAILED: $1: expected $2, got $3"; failed=1; fi
}
failed=0
systemctl is-active --quiet credential-agent credential-agent-redirect || say "the units are not active"
wanted "a worker" ASIAMACHINE000000000 "$(setpriv --reuid 2000 --regid 2000 --clear-groups env -i "$agent/python3" -c "$source")"
wanted "the machine" ASIAMACHINE000000000 "$(env -i "$agent/python3" -c "$source")"
# They are the same identity without a bundle; what differs is who answered.
if "$agent/credential-agent" redirect check; then say "ok: redirect check"; else say "FAILED: redirect check"; failed=1; fi
wanted "packer's user" gone "$(id packer >/dev/null 2>&1 && echo there || echo gone)"
[ "$failed" = 0 ] && say "all well"
