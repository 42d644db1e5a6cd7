# A disk to try on a desk. The same steps as in the clouds, on any image with cloud-init.

source "qemu" "worker" {
  iso_url          = var.qemu_source
  iso_checksum     = var.qemu_checksum
  disk_image       = true
  disk_size        = var.qemu_disk_size
  accelerator      = var.qemu_accelerator
  format           = "qcow2"
  disk_interface   = "virtio"
  net_device       = "virtio-net"
  output_directory = var.qemu_output
  vm_name          = "worker.qcow2"
  headless         = true
  memory           = 1024
  cpus             = 2
  qemuargs         = var.qemu_args
  boot_wait        = "1s"

  # cloud-init takes its first user from a disc with this label: a user with a key of this build, no password. (Packer
  # forwards a port of every interface to the machine's sshd; a password known to all would be an open door.)
  cd_files             = ["${var.qemu_seed}/user-data", "${var.qemu_seed}/meta-data"]
  cd_label             = "cidata"
  ssh_username         = "packer"
  ssh_private_key_file = "${var.qemu_seed}/key"
  ssh_timeout          = "30m"

  # The way in goes with the power.
  shutdown_command = "sudo sh -c 'rm -f /etc/sudoers.d/90-cloud-init-users; userdel --force --remove packer 2>/dev/null; systemctl poweroff'"
  shutdown_timeout = "10m"
}
