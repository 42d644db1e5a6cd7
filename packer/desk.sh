#!/usr/bin/env bash
# Tries the qemu template on a desk, from nothing: makes a small Debian disk, lets Packer's qemu builder turn it into a
# worker's image, boots that image beside a fake EC2 metadata service, and checks who gets which identity. Needs root (for
# debootstrap), packer, qemu-system-x86, debootstrap and a package mirror. With KVM some minutes, without it half an hour.
#
#   desk.sh DIRECTORY        everything is made below DIRECTORY, which may be deleted afterwards
#
# PYTHON: an interpreter with the test packages (default: .venv/bin/python). ACCEL=tcg: software emulation.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 64; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
mirror=${MIRROR:-}
accel=${ACCEL:-$([ -w /dev/kvm ] && echo kvm || echo tcg)}
command_line="root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.show_status=false"
fake=''
trap '[ -z "$fake" ] || kill "$fake" 2>/dev/null || true' EXIT

say() { printf '== %s\n' "$*"; }

if [ ! -f "$work/debian.qcow2" ]; then
  say "a Debian disk"
  rm -rf "$work/root"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libnss-systemd,linux-image-cloud-amd64,udev,kmod,openssh-server,sudo,python3,python3-venv,nftables,iproute2,ca-certificates,procps \
    bookworm "$work/root" "$mirror" >"$work/debootstrap.log"
  printf '/dev/vda / ext4 defaults 0 1\n' >"$work/root/etc/fstab"
  printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >"$work/root/etc/systemd/network/eth0.network"
  chroot "$work/root" useradd --create-home --shell /bin/bash packer
  chroot "$work/root" useradd --create-home --uid 2000 alice
  echo packer:packer | chroot "$work/root" chpasswd
  echo 'packer ALL=(ALL) NOPASSWD:ALL' >"$work/root/etc/sudoers.d/90-cloud-init-users"
  # Packer's ssh client is as old as Packer.
  printf 'PasswordAuthentication yes\nHostKeyAlgorithms +ssh-rsa\nPubkeyAcceptedAlgorithms +ssh-rsa\nKexAlgorithms +diffie-hellman-group14-sha1\n' \
    >"$work/root/etc/ssh/sshd_config.d/packer.conf"
  # Host keys go with the build; each boot makes what is missing.
  mkdir -p "$work/root/etc/systemd/system/ssh.service.d"
  printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
    >"$work/root/etc/systemd/system/ssh.service.d/keys.conf"
  # What the finished image is asked, when the kernel's command line says so.
  install -D -m 0755 "$here/desk-check.sh" "$work/root/usr/local/sbin/desk-check"
  cat >"$work/root/etc/systemd/system/desk-check.service" <<'UNIT'
[Unit]
ConditionKernelCommandLine=desk-check
Wants=credential-agent.target network-online.target
After=credential-agent.target network-online.target multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/desk-check
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
UNIT
  chroot "$work/root" systemctl --quiet enable systemd-networkd systemd-networkd-wait-online desk-check
  : >"$work/root/etc/machine-id"
  cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
  cp "$work"/root/boot/initrd.img-* "$work/initrd"
  mkfs.ext4 -q -F -L root -d "$work/root" "$work/debian.raw" 3G
  qemu-img convert -O qcow2 "$work/debian.raw" "$work/debian.qcow2"
  rm -rf "$work/root" "$work/debian.raw"
fi

say "what is installed in it"
PYTHON=$python "$here/payload.sh" "$work/payload" --wheelhouse 3.11

# The templates, without the block that Packer before 1.7 does not know.
mkdir -p "$work/templates"
cp -R "$here/http" "$here/variables.pkr.hcl" "$here/worker.pkr.hcl" "$work/templates/"
packer version | grep -qE 'v1\.[0-6]\.' || cp "$here/plugins.pkr.hcl" "$work/templates/"
printf '[upstream]\nec2 = "http://169.254.169.254"\n[identity]\ngrace_seconds = 0\n[environment]\ngroup = "credential-workers"\n' >"$work/config.toml"
cat >"$work/desk.pkrvars.hcl" <<VARIABLES
payload          = "$work/payload"
config           = "$work/config.toml"
qemu_source      = "$work/debian.qcow2"
qemu_checksum    = "none"
qemu_accelerator = "$accel"
qemu_output      = "$work/image"
qemu_args = [
  ["-kernel", "$work/vmlinuz"],
  ["-initrd", "$work/initrd"],
  ["-append", "$command_line"],
  ["-serial", "file:$work/build-console.log"],
]
VARIABLES

say "Packer's qemu builder ($accel)"
rm -rf "$work/image"
export CHECKPOINT_DISABLE=1 PACKER_CACHE_DIR=$work/packer-cache
packer validate -var-file="$work/desk.pkrvars.hcl" "$work/templates"
packer build -color=false -only='*qemu.worker' -var-file="$work/desk.pkrvars.hcl" "$work/templates"

say "boot the image beside a fake EC2"
(cd "$here/.." && exec "$python" - >"$work/fake.log" 2>&1) <<'FAKE' &
from datetime import UTC, datetime, timedelta
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.served import run
key = Key("ASIAMACHINE000000000", "s" * 40, "t" * 80, datetime.now(UTC) + timedelta(hours=6))
run(Ec2MetadataService(role="machine-role", key=key), ["--port", "16980"])
FAKE
fake=$!
timeout "${BOOT_SECONDS:-900}" qemu-system-x86_64 -accel "$accel" -m 1024 -smp 2 -display none -no-reboot \
  -kernel "$work/vmlinuz" -initrd "$work/initrd" -append "$command_line desk-check" \
  -drive "file=$work/image/worker.qcow2,if=virtio,format=qcow2" \
  -netdev "user,id=n,net=169.254.169.0/24,dhcpstart=169.254.169.15,restrict=on,guestfwd=tcp:169.254.169.254:80-tcp:127.0.0.1:16980" \
  -device virtio-net-pci,netdev=n -serial "file:$work/console.log"
grep -a 'desk-check' "$work/console.log" || true
grep -aq 'desk-check: all well' "$work/console.log" || { echo "desk: the image does not do what it must; see $work/console.log" >&2; exit 1; }
say "the image is $work/image/worker.qcow2"
