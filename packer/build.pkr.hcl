# Images of workers with the credential agent: one chain of steps, three places. Take one of them with
# -only=amazon-ebs.worker, -only=googlecompute.worker or -only=qemu.worker.

locals {
  stamp      = formatdate("YYYYMMDDhhmmss", timestamp())
  image_name = "${var.name}-${local.stamp}"
  config     = var.config == "" ? "${path.root}/../systemd/config.toml" : var.config
  labels     = { component = "credential-agent", builder = "packer" }
}

build {
  sources = ["source.amazon-ebs.worker", "source.googlecompute.worker", "source.qemu.worker"]

  # The first boot must be over: cloud-init may still hold the package manager. (What it did not manage is the source
  # image's business; whether the agent works is validated below.)
  provisioner "shell" {
    inline = [
      "if command -v cloud-init >/dev/null; then cloud-init status --wait || true; fi",
      "mkdir -p /tmp/payload/etc",
    ]
  }

  provisioner "file" {
    source      = "${var.payload}/"
    destination = "/tmp/payload"
  }

  # The only things of this site in the image: its configuration and its trust anchors.
  provisioner "file" {
    sources     = concat([local.config], var.signers)
    destination = "/tmp/payload/etc/"
  }

  # Installs, then fails the build when what was installed would not work on the machines made from it.
  provisioner "shell" {
    script           = "${path.root}/provision.sh"
    environment_vars = ["INSTALL_OPTIONS=${var.install_options}"]
    execute_command  = "sudo env {{ .Vars }} bash '{{ .Path }}' /tmp/payload"
  }

  # Last, because it takes away what belongs to this machine alone.
  provisioner "shell" {
    script          = "${path.root}/cleanup.sh"
    execute_command = "sudo bash '{{ .Path }}' /tmp/payload"
  }
}
