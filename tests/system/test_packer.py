"""The image templates: formatted, accepted by Packer, and holding what they promise whichever Packer reads them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from tests.system import virtual

pytestmark = pytest.mark.xdist_group("packer")

PACKER = virtual.PACKER
TEMPLATES = sorted(PACKER.glob("*.pkr.hcl"))
SOURCES = ("amazon-ebs", "googlecompute", "qemu")

needs_packer = pytest.mark.skipif(shutil.which("packer") is None, reason="needs packer (apt-get install packer)")


def code(text: str) -> str:
    """HCL without its comments."""
    return re.sub(r"^\s*#.*\n|\s#\s.*$", "", text, flags=re.MULTILINE)


def block(source: str) -> str:
    """The ``source`` block of a builder."""
    found = re.search(
        rf'^source "{source}" "worker" {{\n(.*?)^}}',
        code((PACKER / f"{source}.pkr.hcl").read_text()),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None
    return found[1]


def packer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Packer, which asks nobody for news."""
    environ = {**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_NO_COLOR": "1"}
    return subprocess.run(["packer", *map(str, arguments)], capture_output=True, text=True, env=environ, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the templates for the Packer that is here, and what their variables name."""
    place = tmp_path_factory.mktemp("packer")
    (place / "payload").mkdir()
    (place / "disk.qcow2").touch()
    (place / "control.pub.jwk").write_text("{}")
    (place / "worker.toml").write_text("")
    subprocess.run([PACKER / "seed.sh", place / "seed"], check=True, capture_output=True)
    (place / "templates").mkdir()
    return place


def validate(place: Path, *variables: str, only: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Validate all the templates, with every variable that has no default that works anywhere."""
    local = {
        "payload": place / "payload",
        "qemu_source": place / "disk.qcow2",
        "qemu_checksum": "none",
        "qemu_seed": place / "seed",
        "qemu_output": place / "image",
        "gcp_project": "a-project",
    }
    options = [f"-var={name}={value}" for name, value in local.items()] + [f"-var={variable}" for variable in variables]
    options += [f"-only={name}.worker" for name in only]
    ours = place / "templates/packer"
    return packer("validate", *options, ours if ours.exists() else virtual.templates(place / "templates"))


@needs_packer
class TestPacker:
    """What the installed Packer says."""

    def test_the_templates_are_formatted(self) -> None:
        """``packer fmt`` has nothing to change."""
        done = packer("fmt", "-check", "-diff", PACKER)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_all_sources_are_valid(self, place: Path) -> None:
        """``packer validate`` accepts the whole directory, with no account in any cloud."""
        done = validate(place)
        if "plugin" in done.stderr + done.stdout and virtual.packer_version() >= (1, 7):
            pytest.skip("needs packer's plugins (packer init packer)")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_builds_of_the_page_are_valid(self, place: Path) -> None:
        """Each `packer build` of the page is accepted as it stands there, with the files that it names."""
        page = (PACKER.parent / "packer/README.md").read_text().replace("\\\n", " ")
        builds = [
            shlex.split(line, comments=True) for line in re.findall(r"^\$ packer build (.*)$", page, re.MULTILINE)
        ]
        assert [build[0].removeprefix("-only=").removesuffix(".worker") for build in builds] == list(SOURCES)
        (place / "site.toml").write_text(re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])  # type: ignore[index]
        for name in ("control-plane.pub.jwk", "worker.pub.pem"):
            (place / name).write_text("{}")
        for only, *options, directory in builds:
            assert directory == "packer"
            names = r"\b(site\.toml|control-plane\.pub\.jwk|worker\.pub\.pem)"
            variables = [re.sub(names, rf"{place}/\1", option) for option in options if option != "-var"]
            done = validate(place, *variables, only=[only.removeprefix("-only=").removesuffix(".worker")])
            if "plugin" in done.stderr + done.stdout and virtual.packer_version() >= (1, 7):
                pytest.skip("needs packer's plugins (packer init packer)")
            assert done.returncode == 0, done.stdout + done.stderr

    def test_all_sources_are_valid_with_a_configuration_and_signers(self, place: Path) -> None:
        """Every source is valid with all that a site may set: a configuration and signers among it."""
        done = validate(
            place,
            f"config={place / 'worker.toml'}",
            f'signers=["{place / "control.pub.jwk"}"]',
            "install_options=--no-redirect --worker dask",
            "name=site-worker",
            'aws_copy_to_regions=["us-east-1"]',
            "aws_source_owner=amazon",
            "aws_subnet_id=subnet-0123456789abcdef0",
            "gcp_use_iap=true",
            "qemu_accelerator=tcg",
        )
        if "plugin" in done.stderr + done.stdout and virtual.packer_version() >= (1, 7):
            pytest.skip("needs packer's plugins (packer init packer)")
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("variable", "said"),
        [
            ("config=worker.ini", "ends in .toml"),
            ('signers=["control.key"]', "public keys"),
            ("name=Worker_1", "lower-case"),
            ("name=", "lower-case"),
            ("aws_source_owner=debian", "12 digits"),
            ("qemu_accelerator=xen", "kvm, hvf or tcg"),
        ],
    )
    def test_a_wrong_value_is_told_by_its_rule(self, place: Path, variable: str, said: str) -> None:
        """A variable that cannot work is refused before anything is built, with what it should be."""
        done = validate(place, variable)
        assert done.returncode != 0
        assert said in " ".join((done.stdout + done.stderr).split())

    def test_a_missing_payload_is_told(self, place: Path) -> None:
        """Who forgot ``payload.sh`` hears of it from ``packer validate``, not after a machine was paid for."""
        done = validate(place, f"payload={place / 'nowhere'}")
        assert done.returncode != 0
        assert "nowhere" in done.stdout + done.stderr


class TestPromises:
    """What the templates hold, read from their text: true with every Packer."""

    def test_there_is_one_chain_of_steps_for_all(self) -> None:
        """One build block, all sources, in this order: upload, configuration and anchors, install and validate, clean up."""
        text = code((PACKER / "build.pkr.hcl").read_text())
        assert text.count("build {") == 1
        for source in SOURCES:
            assert f'"source.{source}.worker"' in text
        assert "only" not in text
        assert "except" not in text
        steps = ["${var.payload}/", "concat([local.config], var.signers)", "provision.sh", "cleanup.sh"]
        positions = [text.index(step) for step in steps]
        assert positions == sorted(positions)

    def test_the_install_and_its_validation_can_fail_the_build(self) -> None:
        """The step runs the two scripts one after the other, and the first that fails ends it."""
        lines = (PACKER / "provision.sh").read_text().splitlines()
        assert "set -euo pipefail" in lines
        install = next(i for i, line in enumerate(lines) if "install.sh" in line and line.startswith("bash"))
        assert lines[install + 1] == 'bash "$payload/validate.sh"'

    def test_no_step_looks_for_our_program_where_sudo_may_not(self) -> None:
        """Steps run by sudo, which on RHEL and Amazon Linux does not look into /usr/local/bin: a step names the path."""
        by_name = re.compile(r"(?:^|[;&|(!]|\b(?:if|then|else|do|sudo)\s)\s*credential-agent\s", re.MULTILINE)
        assert by_name.search("x || credential-agent redirect record\n")
        for step in ("provision.sh", "validate.sh", "cleanup.sh"):
            assert not by_name.search((PACKER / step).read_text()), step

    def test_every_variable_is_documented(self) -> None:
        """Each has a type, a default and a description, and a row in the README."""
        text = (PACKER / "variables.pkr.hcl").read_text()
        readme = (PACKER / "README.md").read_text()
        variables = re.findall(r'^variable "(\w+)" {\n(.*?)^}', text, re.MULTILINE | re.DOTALL)
        assert variables
        for name, body in variables:
            for needed in ("type ", "default ", "description "):
                assert re.search(rf"^  {needed}", body, re.MULTILINE), f"{name} has no {needed}"
            assert f"`{name}`" in readme, f"{name} is not in the README"

    def test_every_variable_is_used_and_every_used_one_exists(self) -> None:
        """No variable is left over, none is missing."""
        text = "".join(code(path.read_text()) for path in TEMPLATES)
        declared = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
        elsewhere = "".join(code(path.read_text()) for path in TEMPLATES if path.name != "variables.pkr.hcl")
        assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
        assert set(re.findall(r"\bvar\.(\w+)", elsewhere)) == declared

    def test_the_builders_come_from_pinned_plugins(self) -> None:
        """Each builder's plugin is named with its source and a version."""
        text = code((PACKER / "plugins.pkr.hcl").read_text())
        for name in ("amazon", "googlecompute", "qemu"):
            assert re.search(rf'{name} = {{\s+source  = "github.com/hashicorp/{name}"\s+version = "~> 1\.\d+"', text)

    def test_the_ami_and_its_builder_require_imdsv2(self) -> None:
        """Neither the machines of the AMI nor the one that builds it answer without a session token."""
        assert re.search(r'^  imds_support += "v2\.0"$', block("amazon-ebs"), re.MULTILINE)
        assert re.search(r'^    http_tokens += "required"$', block("amazon-ebs"), re.MULTILINE)

    def test_the_google_builder_has_no_identity(self) -> None:
        """What was never there cannot stay in the image."""
        assert re.search(r"^  disable_default_service_account += true$", block("googlecompute"), re.MULTILINE)

    @pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (apt-get install openssh-client)")
    def test_no_password_opens_the_machine_that_builds(self, tmp_path: Path) -> None:
        """Each qemu build has a key of its own; a port of every interface leads to its sshd while it runs."""
        assert "password" not in "".join(code(path.read_text()) for path in TEMPLATES)
        keys = set()
        for name in ("one", "two", "two"):
            subprocess.run([PACKER / "seed.sh", tmp_path / name], check=True, capture_output=True)
            data = (tmp_path / name / "user-data").read_text()
            public = (tmp_path / name / "key.pub").read_text().strip()
            assert data.startswith("#cloud-config\n")
            assert public in data
            assert "lock_passwd: true" in data
            assert (tmp_path / name / "key").stat().st_mode & 0o077 == 0
            keys.add(public)
        assert len(keys) == 3

    def test_what_packer_1_6_does_not_know_is_left_out_for_it_only(self, tmp_path: Path) -> None:
        """The copy for an old Packer lacks the two newer attributes and nothing else."""
        text = (PACKER / "amazon-ebs.pkr.hcl").read_text()
        older = virtual._NEWER_THAN_1_6.sub("", text)
        lost = set(code(text).splitlines()) - set(code(older).splitlines())
        assert {line.split()[0] for line in lost} == {
            "imds_support", "metadata_options", "http_endpoint", "http_tokens", "http_put_response_hop_limit",
        }  # fmt: skip
        assert code(older).count("{") == code(older).count("}")


@pytest.fixture
def fake_root(tmp_path: Path) -> Path:
    """A payload whose install and validate scripts write down what they are called with."""
    payload = tmp_path / "payload"
    (payload / "etc").mkdir(parents=True)
    for name in ("install.sh", "validate.sh"):
        (payload / name).write_text(
            f'printf "%s\\n" {name} "$@" >>"{tmp_path}/calls"\nexit ${{{name[:2].upper()}:-0}}\n'
        )
    return payload


class TestProvision:
    """``provision.sh``, which every image's build runs."""

    def provision(self, payload: Path, **environ: str) -> tuple[int, list[str]]:
        done = subprocess.run(["bash", PACKER / "provision.sh", payload], env={**os.environ, **environ}, check=False)
        return done.returncode, (payload.parent / "calls").read_text().splitlines()

    def test_the_configuration_and_each_signer_are_installed(self, fake_root: Path) -> None:
        """A ``.toml`` is the configuration, all else are trust anchors; then the validation runs."""
        (fake_root / "etc/site config.toml").touch()
        (fake_root / "etc/a.pub.jwk").write_text(json.dumps({}))
        (fake_root / "etc/b.pem").touch()
        status, calls = self.provision(fake_root, INSTALL_OPTIONS="--worker dask")
        etc = fake_root / "etc"
        assert status == 0
        assert calls == [
            "install.sh", "--no-start", "--worker", "dask", "--signer", f"{etc}/a.pub.jwk", "--signer", f"{etc}/b.pem",
            "--config", f"{etc}/site config.toml", "validate.sh",
        ]  # fmt: skip

    @pytest.mark.parametrize(("script", "calls"), [("IN", ["install.sh", "--no-start"]), ("VA", None)])
    def test_either_script_fails_the_build(self, fake_root: Path, script: str, calls: list[str] | None) -> None:
        """What does not install, or would not work, is no image."""
        (fake_root / "etc/a.toml").touch()
        status, called = self.provision(fake_root, **{script: "3"})
        assert status == 3
        assert ("validate.sh" in called) == (calls is None)


class TestValidate:
    """The checks of ``validate.sh`` that an image must not pass, each by itself and on files of the test."""

    def found(self, root: Path, check: str) -> str:
        """What a check complains of; empty: it passes."""
        match = re.search(rf"^{check}\(\) \{{.*?^\}}$", (PACKER / "validate.sh").read_text(), re.MULTILINE | re.DOTALL)
        assert match is not None
        body = re.sub(r"/(?:etc|opt|var/lib)/(?:credential-agent|credstore)", lambda path: f"{root}{path[0]}", match[0])
        assert body.count(str(root))
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{body}\n{check}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == (1 if done.stdout else 0), done.stderr
        return done.stdout

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        """What an image may hold: configuration and public keys."""
        for name in ("etc/credential-agent/signers", "etc/credstore", "var/lib/credential-agent"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "etc/credential-agent/config.toml").write_text('[[keys]]\nkind = "credential"\n')
        public = bundle.SigningKey.generate("P-256").public_jwk()
        (tmp_path / "etc/credential-agent/signers/a.pub.jwk").write_text(json.dumps(public, indent=1))
        (tmp_path / "etc/credential-agent/signers/b.pem").write_text("-----BEGIN PUBLIC KEY-----\n")
        return tmp_path

    def test_what_an_image_may_hold_passes(self, image: Path) -> None:
        """Trust anchors are no secret."""
        assert self.found(image, "no_secret") == self.found(image, "no_state") == ""

    @pytest.mark.parametrize("kind", ["P-256", "X25519", "oct"])
    @pytest.mark.parametrize("place", ["etc/credential-agent/signers/a.jwk", "etc/credstore/credential-agent.key"])
    def test_a_private_key_fails_the_build(self, image: Path, place: str, kind: Any) -> None:
        """Of each kind, however it is written, and in each place where one might be."""
        secret = bundle.OpeningKey.generate(kind).private_jwk()
        for text in (
            json.dumps(secret), json.dumps({"keys": [secret]}, indent=2), json.dumps(secret, separators=(" ,", " : ")),
            "-----BEGIN PRIVATE KEY-----\n", "-----BEGIN EC PRIVATE KEY-----\n", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
        ):  # fmt: skip
            (image / place).write_text(text)
            assert place in self.found(image, "no_secret"), text

    def test_what_a_bundle_decided_fails_the_build(self, image: Path) -> None:
        """A hidden file is state too."""
        (image / "var/lib/credential-agent/.memory").touch()
        assert "is not empty" in self.found(image, "no_state")

    @pytest.mark.root
    @pytest.mark.parametrize("how", ["group", "others", "owner", "directory"])
    def test_a_file_that_is_not_roots_alone_fails_the_build(self, image: Path, how: str) -> None:
        """Whoever may write into the program runs what he likes as root."""
        place = image / "opt/credential-agent/lib"
        place.mkdir(parents=True)
        place.parent.chmod(0o755)
        place.chmod(0o755)
        file = place / "a.py"
        file.touch()
        file.chmod(0o644)
        (place / "link").symlink_to(file)  # whose mode says nothing
        assert self.found(image, "nothing_writable") == ""
        match how:
            case "group":
                file.chmod(0o664)
            case "others":
                file.chmod(0o646)
            case "owner":
                os.chown(file, 1000, 0)
            case _:
                place.chmod(0o777)
        assert "is not root's alone" in self.found(image, "nothing_writable")
