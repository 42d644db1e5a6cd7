#!/usr/bin/env bash
# Installs the worker credential agent on this machine, upgrades it, or takes it off. Needs root; asks nothing; may be
# repeated. Used by the image templates beside it, by the boot tests, and by people.
#
#   install.sh [options]              install or upgrade
#   install.sh uninstall [--purge]    take it off; --purge: its configuration, state and users too
#
#   --wheel FILE         the agent (default: the wheel beside this script, else built from the source tree around it)
#   --release DIR        install this environment as it is, in place of making one: what a package carries
#   --wheelhouse DIR     install without a network, from the wheels in DIR (default: wheelhouse/ beside this script)
#   --config FILE        install this as the configuration, in place of the present one
#   --signer FILE        pin this signer's public key: goes to /etc/credential-agent/signers/ (may be repeated)
#   --worker USER        let this user read the environment file: adds it to the group credential-workers (repeatable)
#   --platform NAME      ec2, gce or none: which drop-in to install (default: by the firmware)
#   --python PROGRAM     Python 3.11 or later (default: the newest found; installed by the package manager if there is none)
#   --no-packages        do not touch the package manager
#   --no-start           enable the units but start nothing (images)
#   --no-redirect        leave out the nftables redirection: programs find the agent by environment only
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # typed as `sh install.sh`
set -euo pipefail
umask 022
# Who became root by `su` keeps a user's PATH, which on Debian has none of the directories of root's programs; and what a
# shell says of other Pythons must not leak into this one.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

readonly PREFIX=/opt/credential-agent
readonly ETC=/etc/credential-agent
readonly UNITS=/etc/systemd/system
readonly SHARE=/usr/local/share
readonly UNFINISHED=$PREFIX/.unfinished
readonly PRESET=/etc/systemd/system-preset/50-credential-agent.preset
readonly SERVICES=(credential-agent.socket credential-agent-ipv6.socket credential-agent-control.socket
  credential-agent-courier.socket credential-agent.service credential-agent-serve.socket credential-agent-serve.service
  credential-agent-redirect.service credential-agent-closed.service credential-agent-gate@.service credential-agent-again@.service
  credential-agent-watch.service credential-agent-hold.service credential-agent-stopped.service
  credential-agent-workers.slice credential-agent.target)

here=$(cd "$(dirname "$0")" && pwd)
readonly here

say() { printf 'credential-agent: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Inside a chroot or while an image is built there is no systemd to talk to; units are enabled all the same.
booted() { [ -d /run/systemd/system ]; }
reload_systemd() { if booted; then systemctl daemon-reload; fi; }
redirect() { "$PREFIX/bin/credential-agent" redirect "$@"; }
rules() { timeout -k 1 30 nft "$@"; } # one that hangs would be waited for without end

# One at a time: a provisioner and cloud-init, a person and an unattended upgrade. (A child that outlives this has it too.)
alone() {
  local lock file=/run/credential-agent-install.lock
  mkdir -p /run
  while :; do
    umask 077 # whoever can open it can hold it
    exec {lock}>"$file"
    umask 022
    if ! flock --nonblock "$lock"; then
      say "another run of this script is at work on this machine: waiting for its end (ten minutes at most)"
      flock --timeout 600 "$lock" || die "the other run of this script has not ended: see who has $file (fuser, lsof)"
    fi
    # What was waited for may have taken the name away with all the rest: the next one would wait for another file.
    if [ "$(stat -Lc %d:%i - <&"$lock")" = "$(stat -Lc %d:%i "$file" 2>/dev/null)" ]; then return 0; fi
    exec {lock}>&-
  done
}

# -- parts of installing ------------------------------------------------------------------------------------------------

find_python() {
  local name
  for name in ${python:+"$python"} python3.14 python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

# At its first boot a machine updates itself: whoever has the lists just then is waited for, as apt waits for whoever installs.
update_lists() {
  local said end=$((SECONDS + 600))
  until said=$(LC_ALL=C apt-get update -qq 2>&1); do
    case $said in *"Could not get lock"*) ;; *) die "apt-get update: $said" ;; esac
    [ "$SECONDS" -lt "$end" ] || die "apt-get update: $said"
    sleep 2
  done
  [ -z "$said" ] || printf '%s\n' "$said" >&2
}

# The package manager is only called for what is missing: an image that has everything needs no network.
install_packages() {
  local wanted=()
  command -v nft >/dev/null || wanted+=(nftables)
  if [ -f /etc/debian_version ]; then
    find_python >/dev/null || wanted+=(python3 python3-venv)
    command -v ip >/dev/null || wanted+=(iproute2)
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    update_lists
    apt-get install -qq --yes --no-install-recommends -o DPkg::Lock::Timeout=600 "${wanted[@]}" >/dev/null
    # Ubuntu 22.04's python3 is 3.10; a newer one is beside it.
    find_python >/dev/null ||
      apt-get install -qq --yes --no-install-recommends -o DPkg::Lock::Timeout=600 python3.11 python3.11-venv >/dev/null
  elif command -v dnf >/dev/null; then
    find_python >/dev/null || wanted+=(python3.11)
    command -v ip >/dev/null || wanted+=(iproute)
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]}"
    dnf --quiet --assumeyes --setopt=install_weak_deps=False install "${wanted[@]}" >/dev/null
  else
    [ ${#wanted[@]} -eq 0 ] || die "no package manager known here; install ${wanted[*]} and repeat with --no-packages"
  fi
}

# A release is a virtual environment of its own, made beside the running one and switched to by one rename.
provide_release() { # NAME MAKER
  local release=$PREFIX/releases/$1
  if [ -e "$release/.complete" ]; then
    say "release $1 is installed already"
  else
    say "installing $1"
    rm -rf "$release"
    fresh=yes
    mkdir -p "$PREFIX/releases"
    "$2"
    touch "$release/.complete"
  fi
  "$release/bin/credential-agent" --version >/dev/null || die "the new release does not start; the old one is untouched"
  candidate=$release
}

make_environment() {
  local pip_options=()
  [ -n "$wheelhouse" ] && pip_options=(--no-index --find-links "$wheelhouse")
  "$interpreter" -m venv --clear "$release"
  "$release/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-cache-dir --no-compile \
    --only-binary :all: --require-hashes "${pip_options[@]}" -r "$requirements"
  "$release/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
    --no-index "$wheel"
  write_program
  compile_release
  chown -R root:root "$release"
  chmod -R go-w "$release"
}

# What a package carries: made elsewhere, from the same lock. A hard link takes no room; elsewhere than on its own disk a copy.
take_carried() {
  local packages=$release/lib/${interpreter##*/}/site-packages name
  cp -al "$carried" "$release" 2>/dev/null || { rm -rf "$release" && cp -a "$carried" "$release"; }
  # rpm runs this while the files of the version before are still there: what is not on the list is of that one.
  (cd "$release" && find . ! -type d -print | { grep -vxFf .files || true; } | tr '\n' '\0' | xargs -0r rm -f -- &&
    find . -mindepth 1 -type d -empty -delete) || die "$release: cannot be made as it was packed"
  # As `venv` lays one out: packages, three links, one file of words.
  mkdir -p "$release/bin" "${packages%/*}"
  mv "$release/site-packages" "$packages"
  ln -s "$interpreter" "$release/bin/${interpreter##*/}"
  for name in python python3; do ln -s "${interpreter##*/}" "$release/bin/$name"; done
  ln -s lib "$release/lib64"
  printf 'home = %s\ninclude-system-site-packages = false\nversion = %s\n' "${interpreter%/*}" "${interpreter##*/python}" \
    >"$release/pyvenv.cfg"
  write_program
  compile_release
}

# Its own name, not `current`: what runs goes on from its own files while the next one is put beside it. By itself (-I): a
# worker asks with its job's environment, and PYTHONPATH or PYTHONHOME there are for another Python, with other modules.
write_program() {
  printf '#!%s -I\nimport sys\nfrom agent.__main__ import main\nsys.exit(main())\n' "$release/bin/python" \
    >"$release/bin/credential-agent"
  chmod 0755 "$release/bin/credential-agent"
}

# The service may not write there, and would read every source anew at each start. (A wheel of another release compiles nothing.)
compile_release() {
  "$release/bin/python" -I -m agent.host.compiling "$release/lib" ||
    "$release/bin/python" -I -m compileall -q --invalidation-mode unchecked-hash "$release/lib" >/dev/null ||
    die "$release: cannot be compiled by $("$release/bin/python" --version 2>&1)"
}

# The Python of a package's environment: one that it has modules for. The system's own, if it can be, which stays; else the
# newest that is there.
find_carried_python() {
  local name known
  for name in ${python:+"$python"} /usr/bin/python3 $(sort -rV "$carried/.pythons" | sed 's#^#/usr/bin/python#'); do
    known=$("$name" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    grep -qxF "$known" "$carried/.pythons" || continue
    # By the name of its version: what is behind the other one may be another version tomorrow.
    name=$(dirname "$(command -v "$name")")/python$known
    if [ -x "$name" ]; then echo "$name" && return 0; fi
  done
  return 1
}

switch_release() {
  ln -sfn "$candidate" "$PREFIX/current.new"
  mv -T "$PREFIX/current.new" "$PREFIX/current"
  ln -sfn current/bin "$PREFIX/bin"
  ln -sfn "$PREFIX/bin/credential-agent" /usr/local/bin/credential-agent
}

drop_old_releases() {
  local release
  for release in "$PREFIX"/releases/*; do
    [ "$release" = "$(readlink "$PREFIX/current")" ] || rm -rf "$release"
  done
}

# -- all or nothing ----------------------------------------------------------------------------------------------------

# What an installation changes beside the releases, and what a refused one leaves as it was, byte by byte.
owned() {
  printf '%s\n' "$ETC" "$PREFIX/current" "$PREFIX/bin" /usr/local/bin/credential-agent /etc/hosts \
    /etc/sysusers.d/credential-agent.conf /etc/tmpfiles.d/credential-agent.conf /etc/profile.d/credential-agent.sh \
    "$UNITS"/*.wants/credential-agent* "$UNITS"/nftables.service.d "$PRESET"
  pages
  local name
  for name in "${SERVICES[@]}"; do printf '%s\n' "$UNITS/$name" "$UNITS/$name.d"; done
}

# The manual pages and completions that are there. (A package has them among its own files, below /usr/share.)
pages() {
  printf '%s\n' "$SHARE"/man/man1/credential-agent*.1.gz "$SHARE/bash-completion/completions/credential-agent" \
    "$SHARE/zsh/site-functions/_credential-agent" "$SHARE/fish/vendor_completions.d/credential-agent.fish"
}

# Every one of these as it stands: what is in a directory by its own name.
standing() { # ROOT
  local path
  while read -r path; do
    if [ -e "$1$path" ] || [ -L "$1$path" ]; then find "$1$path" -printf '%p\n'; fi
  done <<<"$(owned | sort -u)" | cut -c $((${#1} + 1))- # no <(): there may be no /proc
}

remember() {
  local path
  saved=$(mktemp -d)
  # Not by its unit: after a link to /dev/null in the place of that, and `systemctl unmask`, there is none.
  [ ! -L "$PREFIX/current" ] || present=yes
  # One that was killed may have written units anew: nobody knows of which sockets systemd has the former ones.
  [ ! -e "$UNFINISHED" ] || { unfinished=yes && remade=("$UNITS"/credential-agent*.socket); }
  remade=("${remade[@]##*/}")
  touch "$UNFINISHED"
  while read -r path; do
    # From the root: Debian 12's cp looks for the parents of an absolute path below where it stands.
    if [ -e "$path" ] || [ -L "$path" ]; then (cd / && cp -a --parents ".$path" "$saved/"); fi
  done <<<"$(owned)"
  started=no
}

same() { # FILE FILE
  [ "$(stat -c '%F %a %u %g' "$1")" = "$(stat -c '%F %a %u %g' "$2" 2>/dev/null)" ] || return 1
  if [ -L "$1" ]; then [ "$(readlink "$1")" = "$(readlink "$2")" ]; elif [ ! -d "$1" ]; then cmp -s "$1" "$2"; fi
}

# Beside it, and then by its name: whoever is killed meanwhile leaves the one or the other. In a container the file itself is a
# mount, which has no other name.
replace_hosts() { # COMMAND...: prints what is to stand there
  local file new
  file=$(readlink -f /etc/hosts)
  new=$file.credential-agent
  { cp -a "$file" "$new" && "$@" >"$new" && { mv -f "$new" "$file" 2>/dev/null || cat "$new" >"$file"; }; } ||
    say "$file: cannot be written; what it has for credential-agent stays"
  rm -f "$new"
}

# What is as it was is not touched: it may be a mount, or immutable (chattr +i), and nothing is wrong with it.
put_back() {
  local path before
  before=$( (owned && cd "$saved" && find . -path './etc/systemd/system/*.wants/*' -printf '/%P\n') | sort -u)
  # What was not there, from the leaves on.
  { standing '' && echo "$before"; } | sort -ru | while read -r path; do
    if [ -e "$saved$path" ] || [ -L "$saved$path" ]; then continue; fi
    if [ -e "$path" ] || [ -L "$path" ]; then rm -rf "$path" || say "$path: cannot be taken away again"; fi
  done
  (cd "$saved" && find . -mindepth 1 -printf '/%P\n') | sort | while read -r path; do
    if same "$saved$path" "$path"; then continue; fi
    if [ "$path" = /etc/hosts ]; then
      replace_hosts cat "$saved$path"
    elif [ -d "$saved$path" ] && [ -d "$path" ] && [ ! -L "$path" ] && [ ! -L "$saved$path" ]; then
      # The directories above what we own were only made here to hold it.
      grep -qxF "$path" <<<"$before" || case $path in "$ETC"/* | "$UNITS"/credential-agent*) ;; *) continue ;; esac
      { chown --reference="$saved$path" "$path" && chmod --reference="$saved$path" "$path"; } ||
        say "$path: its mode and owner cannot be put back"
    else
      { rm -rf "$path" && cp -a --no-dereference "$saved$path" "$path"; } || say "$path: cannot be put back"
    fi
  done
}

# Stopping the redirect closes; this opens. (Not through systemd: a closed unit must not open by itself.)
open_workers() {
  local family pref
  if command -v nft >/dev/null && ! { [ -x "$PREFIX/bin/credential-agent" ] && redirect remove; }; then
    rules -f - <<<'table inet credential_agent { }; delete table inet credential_agent
      table inet credential_agent_closed { }; delete table inet credential_agent_closed' || return 1
    ip address del 169.254.171.2/32 dev lo 2>/dev/null || true
    ip address del fd6c:9e1f:25b2::2/128 dev lo 2>/dev/null || true
  fi
  if [ -e /run/credential-agent-redirect/unroutable ]; then  # where nft could not be used
    for family in -4 -6; do for pref in 169 170 171; do
      while ip "$family" rule del pref "$pref" 2>/dev/null; do :; done
    done; done
  fi
  # What says that workers are to be led (agent/host/arrival.py).
  rm -rf /run/credential-agent-redirect
}

# Where the installation before led workers and this one is to leave it: no rule of that one stays.
lead_no_more() {
  systemctl --quiet stop credential-agent-redirect.service credential-agent-watch.service credential-agent-closed.service 2>/dev/null || true
  if [ -d /run/credential-agent-redirect ] || rules list table inet credential_agent_closed >/dev/null 2>&1; then
    open_workers || say "the rules are still there: reboot"
  fi
}

stop_everything() {
  booted || return 0
  systemctl --quiet stop credential-agent.target credential-agent.service credential-agent.socket \
    credential-agent-ipv6.socket credential-agent-control.socket credential-agent-courier.socket credential-agent-redirect.service \
    credential-agent-closed.service credential-agent-watch.service credential-agent-hold.service \
    credential-agent-serve.service credential-agent-serve.socket 'credential-agent-again@*.service' 2>/dev/null || true
  systemctl --quiet stop credential-agent-stopped.service 2>/dev/null || true # the agent's stop has started it
  open_workers || return 1
  # The slices that its name lies in are systemd's doing, and go with it.
  systemctl --quiet stop credential-agent-workers.slice credential-agent.slice credential.slice \
    'system-credential\x2dagent\x2dgate.slice' 2>/dev/null || true
}

# Whether what is installed leads workers: in doubt it does. (Former releases said that they do not in a file beside the target.)
leads() {
  [ ! -e "$UNITS/credential-agent.target.d/50-no-redirect.conf" ] &&
    { [ ! -e "$UNITS/credential-agent.target" ] || grep -q credential-agent-redirect "$UNITS/credential-agent.target"; }
}

# The end of every installation that did not get to its end, whatever ended it.
undo() {
  local name
  [ -n "$saved" ] || return 0
  if [ "$started" = yes ] && booted; then
    # What the new sockets hold the old ones could not bind. Where they are the same the agent is only restarted: a stop
    # would take what was minted with it (the descriptor store), and the workers' credential if nobody can mint just now.
    if [ "$present" = no ]; then
      stop_everything || say "the rules are still there: reboot"
    elif [ ${#remade[@]} -gt 0 ]; then
      systemctl stop credential-agent.service credential-agent-serve.service credential-agent.socket credential-agent-ipv6.socket \
        credential-agent-control.socket credential-agent-courier.socket 'credential-agent-again@*.service' || true
    fi
  fi
  put_back
  [ "$present" = yes ] || say "nothing was installed: what was put here is taken away again"
  rm -rf "$saved"
  saved=''
  if [ "$started" = yes ] && booted; then
    reload_systemd
    if [ "$present" = yes ]; then
      say "putting the release before back to work"
      if ! leads; then lead_no_more; fi
      # Beside them the release that was refused would go on, from files that are gone.
      for name in credential-agent-{closed,watch,redirect}.service; do
        if systemctl --quiet is-enabled "$name" 2>/dev/null; then systemctl restart "$name" || true; fi
      done
      systemctl start credential-agent.socket credential-agent-control.socket || true
      for name in credential-agent-{ipv6,courier}.socket; do
        if [ -e "$UNITS/$name" ]; then systemctl start "$name" || true; fi
      done
      if [ -e "$UNITS/credential-agent-serve.service" ]; then
        systemctl restart credential-agent-serve.service || true
      else
        # It answered with the sockets that the agent of the release before answers on itself.
        systemctl stop credential-agent-serve.service credential-agent-serve.socket 2>/dev/null || true
      fi
      if systemctl restart credential-agent.service; then
        say "the release before runs again, with the configuration before"
      else
        say "the release before does not start either: journalctl --unit credential-agent.service"
      fi
    fi
  fi
  # What is put back is what a killed one left, and the next one must know of it.
  [ "$unfinished" = yes ] || rm -f "$UNFINISHED"
  if [ -n "$candidate" ] && [ "$fresh" = yes ]; then rm -rf "$candidate"; fi
}

keep() { rm -rf "$saved" "$UNFINISHED" && saved=''; }

# What the check of the configuration needs: the users, the directories, the configuration itself. Without /proc
# systemd-tmpfiles does nothing; the boot will do it then.
install_configuration() {
  local name
  install -d -m 0755 "$ETC" "$ETC/signers" "$ETC/closed.d" /etc/sysusers.d /etc/tmpfiles.d
  install -m 0644 "$units/sysusers.d/credential-agent.conf" /etc/sysusers.d/credential-agent.conf
  install -m 0644 "$units/tmpfiles.d/credential-agent.conf" /etc/tmpfiles.d/credential-agent.conf
  systemd-sysusers /etc/sysusers.d/credential-agent.conf
  # As the unit would make them.
  [ -d /run/credential-agent ] ||
    install -d -m 0755 -o credential-agent -g credential-agent /run/credential-agent
  [ -d /var/lib/credential-agent ] ||
    install -d -m 0700 -o credential-agent -g credential-agent /var/lib/credential-agent
  for name in "${signers[@]}"; do
    install -m 0644 "$name" "$ETC/signers/$(basename "$name")"
  done
  # For root and the service: a URL in it may be a credential.
  if [ -n "$config" ]; then
    install -m 0640 -g credential-agent "$config" "$ETC/config.toml"
  elif [ ! -e "$ETC/config.toml" ]; then
    install -m 0640 -g credential-agent "$units/config.toml" "$ETC/config.toml"
  elif [ "$(stat -c %U:%G:%a "$ETC/config.toml")" != root:credential-agent:640 ]; then # it may be immutable
    chown root:credential-agent "$ETC/config.toml"
    chmod 0640 "$ETC/config.toml"
  fi
}

# What of a socket unit makes it another socket: systemd passes those that are there to whichever service they are for.
listening() { # UNIT
  case $1 in *.socket) sed -n '/^\[Socket\]/,/^\[Install\]/p' "$1" | grep -vE '^(#|$|Service=)' ;; esac || true
}

# Ours, and the directory if nothing is left in it: what else is there is the operator's.
remove_drop_ins() { # UNIT NAME...
  local unit=$1 name
  shift
  for name in "$@"; do rm -f "$UNITS/$unit.d/$name.conf"; done
  rmdir "$UNITS/$unit.d" 2>/dev/null || true
}

install_files() {
  local name version end=''
  install -D -m 0644 "$units/profile.d/credential-agent.sh" /etc/profile.d/credential-agent.sh
  for name in "${SERVICES[@]}"; do
    if [ -e "$UNITS/$name" ] && [ "$(listening "$units/$name")" != "$(listening "$UNITS/$name")" ]; then remade+=("$name"); fi
    install -m 0644 "$units/$name" "$UNITS/$name"
  done
  if [ "$with_redirect" = no ]; then
    # In the files themselves: what one of them wants, no file beside it can take back (an empty Wants= does nothing).
    sed -i '/^\(Wants\|After\)=credential-agent-redirect\.service$/d' "$UNITS/credential-agent.target"
    sed -i '/^\(Requires\|After\)=credential-agent-gate@/d' "$UNITS/credential-agent-workers.slice"
  fi
  # As former releases tried.
  for name in credential-agent.target credential-agent-workers.slice; do remove_drop_ins "$name" 50-no-redirect; done
  install -d -m 0755 "$UNITS/credential-agent.service.d" "$UNITS/credential-agent-serve.service.d"
  rm -f "$UNITS/credential-agent.service.d/"50-{ec2,gce,kernel-clock,systemd-249,systemd-254}.conf
  case $platform in
    ec2 | gce) install -m 0644 "$units/drop-ins/50-$platform.conf" "$UNITS/credential-agent.service.d/50-$platform.conf" ;;
  esac
  for name in chronyd ntpd openntpd; do
    command -v "$name" >/dev/null || continue
    install -m 0644 "$units/drop-ins/50-kernel-clock.conf" "$UNITS/credential-agent.service.d/50-kernel-clock.conf"
  done
  version=$(systemctl --version | awk 'NR == 1 { print int($2) }')
  if [ "$version" -lt 252 ]; then
    install -m 0644 "$units/drop-ins/50-systemd-249.conf" "$UNITS/credential-agent.service.d/50-systemd-249.conf"
  elif [ "$version" -ge 254 ]; then
    install -m 0644 "$units/drop-ins/50-systemd-254.conf" "$UNITS/credential-agent.service.d/50-systemd-254.conf"
  fi
  # Not below /opt: it must be there when nothing else is, an older release included.
  install -m 0644 "$candidate"/lib/python3*/site-packages/agent/host/closed.nft "$ETC/closed.nft"
  if [ "$with_redirect" = yes ]; then
    install -D -m 0644 "$units/drop-ins/50-nftables.conf" "$UNITS/nftables.service.d/50-credential-agent.conf"
  else
    remove_drop_ins nftables.service 50-credential-agent
  fi
  write_interpreter
  # Google's clients look for the metadata server by this name, which only Google's own networks resolve.
  if ! grep -qs 'metadata\.google\.internal' /etc/hosts; then
    # A last line without an end would be one with ours, and go with it.
    if [ -n "$(tail -c 1 /etc/hosts 2>/dev/null)" ]; then end=$'\n'; fi
    printf '%s169.254.169.254 metadata.google.internal # credential-agent\n' "$end" >>/etc/hosts
  fi
  for name in "${workers[@]}"; do
    usermod --append --groups credential-workers "$name"
  done
}

# Made by the release itself, with a generator that came by its hash: the bytes that a package has. Nobody's identity
# depends on them, so an installation that cannot have them goes on.
install_pages() {
  local from=$here/pages made wheel epoch name
  pages | tr '\n' '\0' | xargs -0r rm -f --
  [ -z "$carried" ] || return 0
  [ -n "$scratch" ] || scratch=$(mktemp -d)
  made=$scratch/pages
  if [ ! -d "$from" ] && [ -f "$here/package/pages.py" ]; then # in the source tree
    from=$scratch/generator
    "$here/package/generator.sh" "$from" "$candidate/bin/python" \
      ${wheelhouse:+--no-index --find-links "$wheelhouse"} 2>/dev/null || true
  fi
  wheel=$(echo "$from"/click_man-*.whl)
  epoch=$(cat "$from/epoch" 2>/dev/null || echo 1767225600)
  if ! [ -f "$wheel" ] ||
    ! PYTHONPATH=$wheel SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$epoch} "$candidate/bin/python" "$from/pages.py" "$made"; then
    say "without manual pages and completions: click-man, which makes them, is not here"
    return 0
  fi
  gzip --no-name --best "$made"/man/*.1
  for name in "$made"/man/*; do install -D -m 0644 "$name" "$SHARE/man/man1/$(basename "$name")"; done
  install -D -m 0644 "$made/completions/bash/credential-agent" "$SHARE/bash-completion/completions/credential-agent"
  install -D -m 0644 "$made/completions/zsh/_credential-agent" "$SHARE/zsh/site-functions/_credential-agent"
  install -D -m 0644 "$made/completions/fish/credential-agent.fish" "$SHARE/fish/vendor_completions.d/credential-agent.fish"
}

# Before there were operators, the way to let a scraper in was the service's own group, which may read the worker's key.
separate_groups() {
  local member members
  members=$(getent group credential-agent | cut -d: -f4 | tr , ' ')
  for member in $members; do
    usermod --append --groups credential-operators "$member"
    gpasswd --delete "$member" credential-agent >/dev/null
    say "$member is an operator from now on, and no longer in the service's own group: log in again"
  done
}

# The sandbox can execute the interpreter and nothing else beside the program's and the system's libraries. Where it is
# depends on the machine.
write_interpreter() {
  local python prefix
  python=$(readlink -f "$candidate/bin/python")
  prefix=$("$python" -I -c 'import sys; print(sys.base_prefix)')
  {
    echo '# Written by the install script: what the service may execute, beside libraries.'
    echo
    echo '[Service]'
    echo "ExecPaths=$python"
    case $prefix in /usr) ;; *) echo "ExecPaths=-$prefix/lib -$prefix/lib64" ;; esac
  } >"$UNITS/credential-agent.service.d/40-interpreter.conf"
  {
    cat "$UNITS/credential-agent.service.d/40-interpreter.conf"
    # It sees nothing of /opt and the like but this.
    case $prefix in /usr) ;; *) echo "BindReadOnlyPaths=$prefix" ;; esac
  } >"$UNITS/credential-agent-serve.service.d/40-interpreter.conf"
}

enable_units() {
  local enabled=(credential-agent.socket credential-agent-ipv6.socket credential-agent-control.socket
    credential-agent-courier.socket credential-agent.service credential-agent-workers.slice credential-agent-hold.service credential-agent.target)
  if [ "$with_redirect" = yes ]; then
    enabled+=(credential-agent-redirect.service credential-agent-closed.service credential-agent-watch.service)
    systemctl --quiet unmask credential-agent-redirect.service 2>/dev/null || true
  fi
  systemctl --quiet enable "${enabled[@]}"
  # A machine's first boot (machine-id(5)) enables by the distribution's policy, and on some releases disables: what is chosen here
  # stays chosen.
  install -d "${PRESET%/*}"
  { printf 'enable %s\n' "${enabled[@]}" && echo 'disable credential-agent-*.service'; } >"$PRESET"
  if [ "$with_redirect" = no ]; then
    systemctl --quiet disable credential-agent-redirect.service credential-agent-closed.service \
      credential-agent-watch.service 2>/dev/null || true
  fi
}

# So that the first boot refuses system users who are workers before anything of ours runs (agent/host/lasting.py).
record_workers() {
  if [ "$with_redirect" = no ]; then return 0; fi
  redirect record || say "system users who are workers are known only once the redirection has run"
}

# Ends the installation with what a unit that does not start said in its journal.
last_words() { # UNIT WHAT
  journalctl --no-pager --quiet --output cat --lines 20 --unit "$1" >&2 || true
  die "$2; its last words are above"
}

start_units() {
  local name stale=no again=try-restart
  if [ "$with_redirect" = yes ]; then systemctl restart credential-agent-closed.service credential-agent-watch.service; fi
  systemctl start credential-agent-workers.slice
  if [ "$with_redirect" = yes ]; then
    # The process that holds the rules is of the release before; started again it leaves those in force that lead.
    systemctl restart credential-agent-redirect.service 2>/dev/null || last_words credential-agent-redirect.service \
      "the redirection does not start"
  fi
  for name in "${remade[@]}"; do
    case $name in
      # It was the socket itself once; it is a link now.
      credential-agent-control.socket) [ ! -S /run/credential-agent/control.sock ] || stale=yes ;;&
      # A changed socket can only be made anew while nobody listens on it.
      *.socket) systemctl stop credential-agent.service credential-agent-serve.service "$name" 2>/dev/null || true ;;
    esac
  done
  if [ "$stale" = yes ]; then rm -f /run/credential-agent/control.sock; fi
  systemctl start credential-agent.socket credential-agent-control.socket
  # Without these workers are served too. One that could not be made cannot be while its service runs, and is when that starts anew.
  systemctl start credential-agent-ipv6.socket credential-agent-courier.socket 2>/dev/null || true
  # Callers wait in the sockets' queues meanwhile. (A release that answers them in the agent itself goes on to, beside this, until
  # the agent is restarted: the sockets are the same.) Where the agent does not run, its start is this one's too.
  if systemctl --quiet is-active credential-agent.service; then again=restart; fi
  systemctl "$again" credential-agent-serve.service 2>/dev/null ||
    last_words credential-agent-serve.service "what answers workers does not start"
  systemctl restart credential-agent.service 2>/dev/null ||
    last_words credential-agent.service "the agent does not start"
  systemctl start credential-agent-serve.service 2>/dev/null ||
    last_words credential-agent-serve.service "what answers workers does not start"
  systemctl start credential-agent.target
  if [ "$with_redirect" = yes ]; then await_arrival; else lead_no_more; fi
}

# Until the agent listened, a worker's request was refused, and `status` would still say so: the process that holds the
# rules asks again within two seconds. Whoever types `status` next reads what is.
await_arrival() {
  local i
  for ((i = 0; i < 24; i++)); do
    case $(systemctl show --property StatusText --value credential-agent-redirect.service) in led*) return 0 ;; esac
    sleep 0.25
  done
  say "a worker's request does not arrive at the agent yet; credential-agent redirect check says why"
}

# The wheel, and the interpreter that its environment will have.
find_release() {
  local wheels
  interpreter=$(find_python) || die "Python 3.11 or later with the venv module is needed (--python PROGRAM)"
  interpreter=$(readlink -f "$interpreter")
  if [ -z "$wheel" ]; then
    wheels=("$here"/credential_agent-*.whl)
    if [ -f "${wheels[0]}" ]; then
      [ ${#wheels[@]} -eq 1 ] || die "several wheels in $here: say which with --wheel"
      wheel=${wheels[0]}
    elif [ -f "$here/../pyproject.toml" ]; then
      say "building the wheel from the source tree"
      scratch=$(mktemp -d)
      "$interpreter" -m venv "$scratch/venv"
      # What builds is locked as what runs is: root runs both.
      { "$scratch/venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-cache-dir \
        --only-binary :all: --require-hashes -r "$here/../requirements/wheel.txt" &&
        "$scratch/venv/bin/python" -m pip wheel --quiet --no-input --disable-pip-version-check --no-deps \
          --no-build-isolation --wheel-dir "$scratch" "$here/.."; } || die "the wheel could not be built (building needs hatchling, from a package index). For a machine without" \
        "a network: packer/payload.sh DIR --wheelhouse VERSION elsewhere, and DIR/install.sh here"
      wheel=$(ls "$scratch"/credential_agent-*.whl)
    else
      die "no wheel beside this script: use --wheel FILE"
    fi
  fi
}

do_install() {
  local interpreter
  units=$here/systemd requirements=$here/requirements.txt
  if [ ! -d "$units" ]; then # in the source tree
    units=$here/../systemd requirements=$here/../requirements/runtime.txt
  fi
  if [ -z "$carried" ]; then
    [ -f "$requirements" ] || die "$requirements: not found"
    [ ! -e /usr/lib/credential-agent/install.sh ] ||
      die "a package has installed it here, and would undo this at its next upgrade: take that off first, or upgrade it"
  fi
  if [ -z "$wheelhouse" ] && [ -d "$here/wheelhouse" ]; then wheelhouse=$here/wheelhouse; fi
  if [ "$packages" = yes ]; then install_packages; fi
  command -v systemctl >/dev/null || die "systemd is needed"
  [ "$with_redirect" = no ] || command -v nft >/dev/null || die "nftables is needed (or --no-redirect)"
  if [ -z "$carried" ]; then find_release; fi
  if [ "$platform" = auto ]; then
    case "$(cat /sys/class/dmi/id/sys_vendor 2>/dev/null || true)" in
      "Amazon EC2") platform=ec2 ;;
      Google) platform=gce ;;
      *) platform=none ;;
    esac
  fi
  remade=()
  if [ -n "$carried" ]; then
    { [ -f "$carried/.release" ] && [ -f "$carried/.pythons" ]; } || die "$carried: not a release that packer/package.sh made"
    interpreter=$(find_carried_python) ||
      die "this package has what Python $(paste -sd ' ' "$carried/.pythons") needs, and none of these is in /usr/bin"
    provide_release "$(cat "$carried/.release")-${interpreter##*/}" take_carried
  else
    provide_release "$(basename "$wheel" .whl)-$({ cat "$wheel" "$requirements" && echo "$interpreter"; } | sha256sum | cut -c1-12)" \
      make_environment
  fi
  remember
  install_configuration
  # As the service: what it cannot read is not there for it.
  setpriv --reuid credential-agent --regid credential-agent --init-groups \
    "$candidate/bin/credential-agent" check --config "$ETC/config.toml" >/dev/null ||
    die "the configuration is not acceptable to the new release (see above); everything is as it was"
  install_files
  install_pages
  switch_release
  reload_systemd
  enable_units
  record_workers
  if booted && [ "$start" = yes ]; then
    reload_systemd
    started=yes
    start_units
    say "installed and running"
  else
    say "installed; it starts at the next boot"
  fi
  keep
  separate_groups
  drop_old_releases
}

# -- taking it off ------------------------------------------------------------------------------------------------------

do_uninstall() {
  local name more=' (--purge takes them too)'
  stop_everything
  systemctl --quiet disable "${SERVICES[@]}" 2>/dev/null || true
  for name in "${SERVICES[@]}"; do
    rm -f "$UNITS/$name"
    remove_drop_ins "$name" 40-interpreter 50-{ec2,gce,kernel-clock,no-redirect,systemd-249,systemd-254}
    [ "$purge" = no ] || rm -rf "${UNITS:?}/$name.d"
  done
  remove_drop_ins nftables.service 50-credential-agent
  rm -f "$ETC/closed.nft"
  rm -rf "$ETC/closed.d"
  rm -f /etc/sysusers.d/credential-agent.conf /etc/tmpfiles.d/credential-agent.conf /etc/profile.d/credential-agent.sh "$PRESET"
  if grep -qs '# credential-agent$' /etc/hosts; then
    replace_hosts sed '/# credential-agent$/d' /etc/hosts
  fi
  rm -f /usr/local/bin/credential-agent
  pages | tr '\n' '\0' | xargs -0r rm -f --
  rm -rf "$PREFIX" /run/credential-agent /run/credential-agent-control.sock /run/credential-agent-courier.sock \
    /run/credential-agent-serve.sock
  reload_systemd
  if booted; then systemctl --quiet reset-failed 'credential-agent*' 2>/dev/null || true; fi
  if [ "$purge" = yes ]; then
    rm -rf "$ETC" /var/lib/credential-agent || say "not all of $ETC and /var/lib/credential-agent could be removed"
    for name in credential-agent credential-agent-serve; do userdel "$name" 2>/dev/null || true; done
    for name in credential-agent credential-agent-serve credential-workers credential-operators credential-metrics; do
      groupdel "$name" 2>/dev/null || true
    done
    say "removed, with its configuration and state"
  else
    [ "$here" != /usr/lib/credential-agent ] || more='' # a package's: whoever removes it cannot give this option
    say "removed; $ETC and /var/lib/credential-agent are kept$more"
  fi
  rm -f /run/credential-agent-install.lock
}

# -- the command line ---------------------------------------------------------------------------------------------------

wheel='' carried='' wheelhouse='' config='' platform=auto python='' packages=yes start=yes with_redirect=yes purge=no
signers=() workers=() scratch='' candidate='' saved='' fresh=no started=no unfinished=no present=no action=install
trap 'undo; [ -z "$scratch" ] || rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM HUP

if [ "${1:-}" = uninstall ]; then action=uninstall && shift; elif [ "${1:-}" = install ]; then shift; fi
while [ $# -gt 0 ]; do
  case $1 in
    --wheel | --release | --wheelhouse | --config | --signer | --worker | --platform | --python)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --wheel) wheel=$(readlink -f "$2") ;;
        --release) carried=$(readlink -f "$2") ;;
        --wheelhouse) wheelhouse=$(readlink -f "$2") ;;
        --config) config=$(readlink -f "$2") ;;
        --signer) signers+=("$(readlink -f "$2")") ;;
        --worker) workers+=("$2") ;;
        --platform) platform=$2 ;;
        --python) case $2 in */*) python=$(realpath -s "$2") ;; *) python=$2 ;; esac ;;
      esac
      shift
      ;;
    --no-packages) packages=no ;;
    --no-start) start=no ;;
    --no-redirect) with_redirect=no ;;
    --purge) purge=yes ;;
    -h | --help)
      sed -n '2,/^[^#]/{/^[^#]/d;s/^# \{0,1\}//;p}' "$0"
      exit 0
      ;;
    *) die "$1: unknown option; --help lists them" ;;
  esac
  shift
done
[ "$purge" = no ] || [ "$action" = uninstall ] || die "--purge goes with uninstall: $0 uninstall --purge"
case $platform in auto | ec2 | gce | none) ;; *) die "--platform: expected ec2, gce or none, got $platform" ;; esac
for file in ${wheel:+"$wheel"} ${config:+"$config"} "${signers[@]}"; do [ -f "$file" ] || die "$file: not found"; done
[ "$(id -u)" = 0 ] || die "needs root"
for name in "${workers[@]}"; do
  getent passwd "$name" >/dev/null || die "--worker: expected a user of this machine, got '$name'; add the user first (useradd)"
done
# Where the caller stands the service may not look (/root), or nobody any more.
cd /

alone
if [ "$action" = install ]; then do_install; else do_uninstall; fi
