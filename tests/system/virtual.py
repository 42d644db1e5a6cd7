"""An image as a person builds it: Packer's qemu builder, on an emulated processor, from a disk made here; then booted.

``make image`` runs this module. It prints each step as it takes it:

1. A disk to start from, as a cloud's image is: Debian with a kernel, a boot loader, cloud-init and sshd (kept in the cache).
2. The payload (``packer/payload.sh``) with its wheelhouse, and the key that is the way in (``packer/seed.sh``).
3. ``packer build`` of ``packer/``, the qemu source only: installs, validates in the machine, cleans up, shuts down.
4. What the image holds, looked at from outside: no key, no state, no machine id, no user of the builder.
5. Boots it twice on a network where 169.254.169.254 is a fake EC2: without a bundle, and with a sealed one in user-data.

No hardware help is used (``tcg``), so that it runs where there is none; on two cores it takes a quarter of an hour.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from agent import bundle
from agent.core.model import AwsSession, GcpToken
from agent.core.secret import Secret
from tests.system import machine as m

PACKER = m.REPOSITORY / "packer"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "libnss-systemd", "libpam-systemd", "udev", "linux-image-cloud-amd64",
    "openssh-server", "cloud-init", "sudo", "python3", "python3-venv", "nftables", "iproute2", "ca-certificates", "procps",
    "python3-cffi-backend",  # what debootstrap does not see that cloud-init needs, through a virtual package
)  # fmt: skip
TOOLS = ("packer", "qemu-system-x86_64", "qemu-img", "debootstrap", "extlinux", "sfdisk", "xorriso", "ssh", "ssh-keygen",
         "ip", "mount")  # fmt: skip
DEBIAN_PACKAGES = (
    "packer qemu-system-x86 qemu-utils debootstrap extlinux syslinux-common fdisk xorriso openssh-client iproute2"
)
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
SSH_PORT = 2222

# Attributes that Packer 1.6 (Debian's, with its builders built in) does not know yet. All of them are about the clouds.
_NEWER_THAN_1_6 = re.compile(r"^ *imds_support +=.*\n|^ *metadata_options \{\n(?:.*\n)*?^ *\}\n", re.MULTILINE)


def missing() -> str | None:
    """Why no image can be built here; ``None``: it can."""
    if os.geteuid() != 0:
        return "needs root: mounts a disk, and makes networks"
    absent = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    absent += [] if MBR.exists() else [str(MBR)]
    return f"needs {', '.join(absent)} (apt-get install {DEBIAN_PACKAGES})" if absent else None


def packer_version() -> tuple[int, int]:
    """Of the ``packer`` that is installed."""
    found = re.search(r"v(\d+)\.(\d+)", m.call("packer", "version"))
    assert found is not None
    return int(found[1]), int(found[2])


def templates(place: Path) -> Path:
    """The templates, for the Packer that is installed: as they are, or without what Packer 1.6 does not know."""
    if packer_version() >= (1, 7):
        return PACKER
    copy = place / "packer"
    copy.mkdir()
    (place / "systemd").symlink_to(m.REPOSITORY / "systemd")  # beside packer/, as in the source tree
    for path in PACKER.iterdir():
        if path.name.endswith(".pkr.hcl"):
            # Its plugins are built in, and it cannot read this file.
            if path.name != "plugins.pkr.hcl":
                (copy / path.name).write_text(_NEWER_THAN_1_6.sub("", path.read_text()))
        else:
            (copy / path.name).symlink_to(path)
    return copy


def step(text: str) -> None:
    """One line of the transcript."""
    print(f"{time.strftime('%H:%M:%S')} == {text}", flush=True)


def run(*command: str | Path, **environ: str) -> None:
    """Run a command where its output can be seen."""
    print(f"         $ {' '.join(map(str, command))}", flush=True)
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **environ}, stdin=subprocess.DEVNULL)


# -- the disk to start from -----------------------------------------------------------------------------------------------


@contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """The first partition of a raw disk."""
    with tempfile.TemporaryDirectory() as place:
        m.call("mount", "-o", "loop,offset=1048576", disk, place)
        try:
            yield Path(place)
        finally:
            m.call("umount", place)


def base_disk() -> Path:
    """Debian as the clouds' images have it: boots from its own disk, takes its first user from cloud-init."""
    source = Path(__file__).read_bytes()
    recipe = source[source.index(b"def base_disk") : source.index(b"\n# -- the image")] + " ".join(PACKAGES).encode()
    target = m.cache() / f"disk-{m._digest(m.SUITE.encode(), recipe)}.qcow2"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=m.cache()) as scratch:
        root, disk = Path(scratch, "root"), Path(scratch, "disk.img")
        m.call("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", m.SUITE, root, m.mirror())
        (root / "etc/fstab").write_text("LABEL=root / ext4 errors=remount-ro 0 1\n")
        (root / "etc/hostname").write_text("worker\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 worker\n::1 localhost ip6-localhost\n")
        (root / "etc/machine-id").write_text("")
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
        (root / "etc/systemd/network/80-dhcp.network").write_text(
            "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n"
        )
        (root / "etc/cloud/cloud.cfg.d/90-here.cfg").write_text(
            "datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\napt: {preserve_sources_list: true}\n"
            "locale: false\nssh_genkeytypes: [ecdsa, ed25519]\n"
        )
        m.call("chroot", root, "systemctl", "enable", "systemd-networkd.service", "ssh.service")
        m.call("chroot", root, "systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")
        m.call("chroot", root, "apt-get", "clean")
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        boot = root / "boot/extlinux"
        boot.mkdir()
        (boot / "extlinux.conf").write_text(
            "DEFAULT linux\nPROMPT 0\nLABEL linux\n LINUX /vmlinuz\n INITRD /initrd.img\n"
            " APPEND root=LABEL=root ro console=ttyS0 net.ifnames=0\n"
        )
        with disk.open("wb") as file:
            file.truncate(3 << 30)
        m.call("sfdisk", "--quiet", disk, input="label: dos\nstart=2048, type=83, bootable\n")
        # extlinux reads no ext4 of more than 32 bits.
        m.call(
            "mkfs.ext4", "-q", "-O", "^64bit,^metadata_csum", "-L", "root", "-E", "offset=1048576", "-d", root, disk,
            f"{(3 << 20) - 1024}k",
        )  # fmt: skip
        with mounted(disk) as place:
            m.call("extlinux", "--install", place / "boot/extlinux")
        with disk.open("r+b") as file:
            file.write(MBR.read_bytes()[:440])
        m.call("qemu-img", "convert", "-O", "qcow2", disk, Path(scratch, "disk.qcow2"))
        Path(scratch, "disk.qcow2").rename(target)
    return target


# -- the image ------------------------------------------------------------------------------------------------------------


class Sender:
    """A control plane. Its public key goes into the image; the worker's private one reaches the machine on another way."""

    ISSUER = "https://control.example"
    AUDIENCE = bundle.audience_cluster("desk")

    def __init__(self) -> None:
        self.signer = bundle.SigningKey.generate("Ed25519")
        self.worker = bundle.OpeningKey.generate("P-256")

    def configure(self, place: Path) -> tuple[Path, Path]:
        """Write the configuration and the trust anchor that go into the image."""
        anchor, config = place / "control.pub.jwk", place / "worker.toml"
        anchor.write_text(json.dumps(self.signer.public_jwk()))
        config.write_text(
            f"""
[[keys]]
kind = "credential"
name = "credential-agent.key"
[[signers]]
key = "/etc/credential-agent/signers/{anchor.name}"
issuers = ["{self.ISSUER}"]
[[sources]]
kind = "ec2-user-data"
[identity]
audience = ["{self.AUDIENCE}"]
grace_seconds = 10
[upstream]
ec2 = "http://169.254.169.254"
gce = "off"
[environment]
group = "credential-workers"
"""
        )
        return config, anchor

    def seal(self) -> bytes:
        """A bundle for six hours."""
        now = datetime.now(UTC)
        until = int((now + timedelta(hours=6)).timestamp())
        aws = AwsSession(
            id="aws",
            access_key_id=m.USER_KEY,
            secret_access_key=Secret("s" * 40),
            session_token=Secret("t" * 80),
            expires_at=until,
            region="eu-west-1",
        )
        google = GcpToken(
            id="gcp",
            access_token=Secret(m.USER_TOKEN),
            expires_at=until,
            email="user@project.iam.gserviceaccount.com",
            project_id="user-project",
        )
        return bundle.seal(
            signer=self.signer,
            recipients=[bundle.RecipientKey.parse(json.dumps(self.worker.public_jwk()))],
            issuer=self.ISSUER,
            subject="user:alice",
            audiences=[self.AUDIENCE],
            now=now,
            grants=[aws, google],
            seq=1,
        )


def build(work: Path, sender: Sender) -> Path:
    """Run Packer; the finished disk."""
    config, anchor = sender.configure(work)
    run(PACKER / "payload.sh", work / "payload", "--wheelhouse", "3.11", PYTHON=sys.executable)
    run(PACKER / "seed.sh", work / "seed")
    variables = work / "desk.pkrvars.hcl"
    variables.write_text(
        f"""payload          = "{work / "payload"}"
config           = "{config}"
signers          = ["{anchor}"]
qemu_source      = "{base_disk()}"
qemu_checksum    = "none"
qemu_seed        = "{work / "seed"}"
qemu_accelerator = "tcg"
qemu_output      = "{work / "image"}"
qemu_args        = [["-serial", "file:{work / "build.console"}"]]
"""
    )
    place = templates(work)
    options = ("-only=qemu.worker", f"-var-file={variables}", place)
    environ = {"CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(work / "packer-cache")}
    run("packer", "validate", *options, **environ)
    run("packer", "build", "-color=false", "-timestamp-ui", *options, **environ)
    return work / "image/worker.qcow2"


def inspect(disk: Path, sender: Sender) -> None:
    """What the image holds, seen from outside.

    Raises:
        AssertionError: something of the build is in it, or something of the agent is not.
    """
    raw = disk.with_suffix(".raw")
    m.call("qemu-img", "convert", "-O", "raw", disk, raw)
    secret = json.dumps(sender.worker.private_jwk())
    with mounted(raw) as root:
        assert (root / "etc/machine-id").read_text() == "", "the image has a machine id"
        assert not list((root / "etc/ssh").glob("ssh_host_*")), "the image has the builder's host keys"
        assert not list((root / "var/lib/credential-agent").iterdir()), "the image has an agent's state"
        assert "packer" not in (root / "etc/passwd").read_text(), "the image has the builder's user"
        assert not (root / "home/packer").exists(), "the image has the builder's home"
        assert not list((root / "root").glob(".ssh/authorized_keys")), "the image has a way in for root"
        assert not list((root / "var/lib/cloud").glob("instance*/*")), "cloud-init believes to have run"
        assert not (root / "tmp/payload").exists(), "the image has the payload"
        assert (root / "etc/credential-agent/signers/control.pub.jwk").is_file(), "the trust anchor is missing"
        own = json.loads(secret)["d"].encode()
        for folder in ("etc", "root", "home", "var/lib", "opt/credential-agent/releases"):
            for path in (root / folder).rglob("*"):
                if not path.is_file() or path.is_symlink():
                    continue
                content = path.read_bytes()
                assert own not in content, f"the worker's private key is in the image: {path}"
                # What names a private key's frame to read one (a library's source), or to show one (an example), is none.
                if path.suffix not in {".py", ".pyc", ".so"} and path.name != "examples-1.json":
                    assert b"PRIVATE KEY-----" not in content, f"a private key is in the image: {path}"
    raw.unlink()


# -- the machine ----------------------------------------------------------------------------------------------------------


class Machine:
    """A virtual machine made from the image, on a network with a fake EC2.

    qemu runs inside the cloud's network namespace: what the guest sends to 169.254.169.254 qemu sends there, and the fake
    service answers. Nothing else can be reached.

    Args:
        disk: the image; what the machine writes goes to a file of its own.
        work: where that file goes.
        cloud: the network.
        key: the worker's private key, which is in no image: qemu gives it to the machine's firmware, systemd finds it there.
    """

    def __init__(self, disk: Path, work: Path, cloud: m.Cloud, key: str) -> None:
        self._work, self._cloud = work, cloud
        self._inside = ["ip", "netns", "exec", cloud.here]
        work.mkdir()
        m.call("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, work / "disk.qcow2")
        m.call(
            "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / "key",
        )  # fmt: skip
        public = (work / "key.pub").read_text().strip()
        (work / "meta-data").write_text(f"instance-id: {work.name}-{os.getpid()}\n")
        (work / "user-data").write_text(
            "#cloud-config\nusers:\n"
            f"  - {{name: tester, sudo: 'ALL=(ALL) NOPASSWD:ALL', shell: /bin/bash, ssh_authorized_keys: ['{public}']}}\n"
            "  - {name: alice, shell: /bin/bash}\n"
        )
        m.call(
            "xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", work / "seed.iso",
            work / "user-data", work / "meta-data",
        )  # fmt: skip
        credential = f"io.systemd.credential.binary:credential-agent.key={base64.b64encode(key.encode()).decode()}"
        self._qemu = subprocess.Popen(
            [
                *self._inside, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", "1024", "-smp", "2",
                "-display", "none", "-no-reboot", "-serial", f"file:{work / 'console'}",
                "-smbios", f"type=11,value={credential}",
                "-drive", f"file={work / 'disk.qcow2'},if=virtio,format=qcow2",
                "-drive", f"file={work / 'seed.iso'},if=virtio,format=raw,readonly=on",
                "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{SSH_PORT}-:22",
                "-device", "virtio-net-pci,netdev=net",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> Self:
        end = time.monotonic() + 900
        while True:
            assert self._qemu.poll() is None, "qemu ended"
            assert time.monotonic() < end, f"the machine does not boot; see {self._work / 'console'}"
            # The target is what workers' units wait for; cloud-init has made the users by then.
            try:
                asked = self.run(
                    "sudo cloud-init status --wait; systemctl is-active credential-agent.target", check=False
                )
            except subprocess.TimeoutExpired:
                continue
            if asked.splitlines()[-1:] == ["active"]:
                return self
            time.sleep(3)

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            print(self.run("sudo journalctl --no-pager -b -n 80 -u 'credential-agent*'", check=False))
        self.run("sudo systemctl poweroff", check=False)
        try:
            self._qemu.wait(120)
        except subprocess.TimeoutExpired:
            self._qemu.kill()
            self._qemu.wait(10)

    def run(self, command: str, *, text: str | None = None, check: bool = True, seconds: float = 300) -> str:
        """Run a shell command as the user with the key; its standard output."""
        ssh = [
            "ssh", "-q", "-i", str(self._work / "key"), "-p", str(SSH_PORT), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes", "tester@127.0.0.1",
        ]  # fmt: skip
        done = subprocess.run(
            [*self._inside, *ssh, command],
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def bring_sdk(self) -> None:
        """Put beside the agent's packages what google-auth's usual transport needs, where ``m.GOOGLE`` looks for it."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for package in m.sdk():
                archive.add(package, package.name)
        text = base64.encodebytes(packed.getvalue()).decode()
        self.run("sudo mkdir -p /opt/sdk && base64 -d | sudo tar -xz -C /opt/sdk", text=text)

    def python(self, source: str, *arguments: str, before: str = "", **environ: str) -> str:
        """Run Python source with the SDKs that are installed, and nothing of the environment but ``environ``."""
        words, variables = " ".join(arguments), " ".join(f"{name}={value}" for name, value in environ.items())
        return self.run(f"{before} env -i {variables} {m.PYTHON} -I -W ignore - {words}", text=source).strip()


WORKER = "sudo -u alice"
ROOT = "sudo"
SYSTEM = "sudo -u daemon"
IN_SLICE = "sudo systemd-run --quiet --pipe --wait --collect --slice=credential-agent-workers.slice"


def expect(what: str, got: str, *wanted: str) -> None:
    """One line of the transcript, and the end where it is not what it must be."""
    print(f"         {'ok  ' if got in wanted else 'FAIL'} {what}: {got}", flush=True)
    assert got in wanted, f"{what}: expected {' or '.join(wanted)}, got {got}"


def without_a_bundle(machine: Machine) -> None:
    """The image as it is: workers get the machine's identity, through the agent."""
    expect("a worker's boto3", machine.python(m.AWS, before=WORKER), m.MACHINE_KEY)
    expect("who answers the worker", machine.python(m.CONNECT, "169.254.169.254", "80", before=WORKER), "agent")
    expect("who answers the machine", machine.python(m.CONNECT, "169.254.169.254", "80", before=ROOT), "other")
    said = machine.run("sudo credential-agent redirect check")
    print(re.sub("^", "         | ", said.strip(), flags=re.MULTILINE), flush=True)
    expect("the failures of redirect check", str(said.count("FAIL")), "0")


def with_a_bundle(machine: Machine) -> None:
    """The sealed bundle in user-data: what the boot tests of the container check too, on a kernel of its own."""
    expect("a worker's boto3", machine.python(m.AWS, before=WORKER), m.USER_KEY)
    machine.bring_sdk()
    expect("a worker's google-auth", machine.python(m.GOOGLE, before=WORKER), m.USER_TOKEN)
    expect("a job of root in the workers' slice", machine.python(m.AWS, before=IN_SLICE), m.USER_KEY)
    expect("root's own boto3", machine.python(m.AWS, before=ROOT), m.MACHINE_KEY)
    expect("a system user's boto3", machine.python(m.AWS, before=SYSTEM), m.MACHINE_KEY)
    refused = machine.python(m.CONNECT, "127.0.0.1", str(m.PORT), before=SYSTEM)
    expect("a system user at the agent's port", refused, "ConnectionRefusedError")
    for address in ("fd00:ec2::254", "fd20:ce::254"):
        expect(f"a worker at {address}", machine.python(m.CONNECT, address, "80", before=WORKER), "agent")
    got = machine.python(m.CONNECT, "169.254.169.254", "443", before=WORKER)
    # Which error it is, is the kernel's business.
    expect("a worker at its other port", "nobody" if got.endswith("Error") else got, "nobody")
    machine.run("sudo systemctl kill --signal=KILL credential-agent.service")
    # botocore waits a second, in which the agent is back on any processor but an emulated one (eight seconds): what is
    # asked here is that the request waits in the socket's queue.
    patient = machine.python(m.AWS, before=WORKER, AWS_METADATA_SERVICE_TIMEOUT="60")
    expect("a worker's boto3 after kill -9, with a minute's patience", patient, m.USER_KEY)
    machine.run("sudo systemctl stop credential-agent-redirect.service")
    expect("a worker's boto3, the redirect stopped", machine.python(m.AWS, before=WORKER), "none")


def _all(work: Path) -> Path:
    sender = Sender()
    key = json.dumps(sender.worker.private_jwk())
    step(f"the disk to start from: {m.SUITE}, in the cache from then on")
    base_disk()
    step(f"packer {'.'.join(map(str, packer_version()))}: build")
    disk = build(work, sender)
    step("look into the image")
    inspect(disk, sender)
    for name, data, check in (("bare", None, without_a_bundle), ("bundle", sender.seal(), with_a_bundle)):
        step(f"boot it, {'with a sealed bundle in user-data' if data else 'without a bundle'}")
        with m.ec2() as cloud:
            cloud.set_user_data(data)
            with Machine(disk, work / name, cloud, key) as machine:
                check(machine)
    return disk


def main() -> int:
    """Build, look, boot; the first thing that is wrong ends it."""
    if (reason := missing()) is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "build/image").absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        disk = _all(work)
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[0]} ended with status {error.returncode}; its words are above", file=sys.stderr)
        return 1
    step(f"all is as it must be: {disk}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
