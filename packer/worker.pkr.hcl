# Images of workers with the credential agent in them. One build, three places; `packer build -only='*.qemu.*' packer/`
# makes one of them.

source "amazon-ebs" "worker" {
  region        = var.aws_region
  instance_type = var.aws_instance_type
  ssh_username  = var.aws_ssh_username
  ami_name      = "${var.name}-${local.stamp}"

  source_ami_filter {
    filters = {
      name                = var.aws_source_name
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = [var.aws_source_owner]
    most_recent = true
  }
}

source "googlecompute" "worker" {
  project_id          = var.gcp_project
  zone                = var.gcp_zone
  source_image_family = var.gcp_source_family
  ssh_username        = "packer"
  image_name          = "${var.name}-${local.stamp}"
  image_family        = var.name
}

source "qemu" "worker" {
  iso_url          = var.qemu_source
  iso_checksum     = var.qemu_checksum
  disk_image       = true
  accelerator      = var.qemu_accelerator
  format           = "qcow2"
  output_directory = var.qemu_output
  vm_name          = "worker.qcow2"
  headless         = true
  memory           = 1024
  cpus             = 2
  ssh_username     = "packer"
  ssh_password     = "packer"
  ssh_timeout      = "30m"
  boot_wait        = "1s"
  qemuargs         = var.qemu_args
  # The disk's cloud-init reads its first user from here (the address is in the firmware's serial number).
  http_directory = "${path.root}/http"
  # Nothing of the way in stays: the user goes with the power.
  shutdown_command = "sudo sh -c 'userdel --force --remove packer; rm -f /etc/sudoers.d/90-cloud-init-users; systemctl poweroff'"
}

build {
  sources = ["source.amazon-ebs.worker", "source.googlecompute.worker", "source.qemu.worker"]

  provisioner "shell" {
    inline = ["mkdir -p /tmp/payload/signers"]
  }

  provisioner "file" {
    source      = "${var.payload}/"
    destination = "/tmp/payload"
  }

  dynamic "provisioner" {
    labels   = ["file"]
    for_each = concat(var.config == "" ? [] : [var.config], var.signers)
    iterator = each
    content {
      source      = each.value
      destination = each.value == var.config ? "/tmp/payload/config.toml" : "/tmp/payload/signers/"
    }
  }

  provisioner "shell" {
    inline = [
      "set -e",
      "cloud-init status --wait >/dev/null 2>&1 || true",
      "cd /tmp/payload",
      "if [ -f config.toml ]; then set -- --config config.toml; fi",
      "for key in signers/*; do if [ -f \"$key\" ]; then set -- \"$@\" --signer \"$key\"; fi; done",
      "sudo bash ./install.sh --no-start \"$@\"",
      # Fails the build when what was just installed would not work.
      "sudo bash ./validate.sh",
    ]
  }

  # What belongs to this machine only: its copies begin with their own.
  provisioner "shell" {
    inline = [
      "rm -rf /tmp/payload",
      "if command -v cloud-init >/dev/null; then sudo cloud-init clean --logs --machine-id 2>/dev/null || sudo cloud-init clean --logs; fi",
      "sudo truncate -s 0 /etc/machine-id",
      "sudo rm -f /var/lib/systemd/random-seed /etc/ssh/ssh_host_*",
    ]
  }
}
