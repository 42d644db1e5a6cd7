variable "payload" {
  type        = string
  default     = "build/payload"
  description = "What packer/payload.sh gathered: the wheel, the locked dependencies, the units, the install script."
}

variable "config" {
  type        = string
  default     = ""
  description = "The agent's configuration for this image (/etc/credential-agent/config.toml). Empty: the default one."
}

variable "signers" {
  type        = list(string)
  default     = []
  description = "Public keys of the signers that this image believes. Public ones only: the build fails on a private key."
}

variable "name" {
  type        = string
  default     = "credential-agent-worker"
  description = "The beginning of the image's name; the time of the build is added."
}

variable "aws_region" {
  type        = string
  default     = "eu-west-1"
  description = "Where the AMI is built."
}

variable "aws_source_owner" {
  type        = string
  default     = "136693071363"
  description = "Who owns the image to start from: Debian's own account."
}

variable "aws_source_name" {
  type        = string
  default     = "debian-12-amd64-*"
  description = "The name of the image to start from; the newest that matches is taken."
}

variable "aws_ssh_username" {
  type        = string
  default     = "admin"
  description = "The first user of that image: admin (Debian), ubuntu, ec2-user (Amazon Linux)."
}

variable "aws_instance_type" {
  type        = string
  default     = "t3.small"
  description = "What to build on."
}

variable "gcp_project" {
  type        = string
  default     = "project-id"
  description = "The Google Cloud project that builds and keeps the image."
}

variable "gcp_zone" {
  type        = string
  default     = "europe-west1-b"
  description = "Where the image is built."
}

variable "gcp_source_family" {
  type        = string
  default     = "debian-12"
  description = "The family of the image to start from."
}

variable "qemu_source" {
  type        = string
  default     = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
  description = "The disk to start from: a URL or a path. It must have cloud-init, or the user and password below."
}

variable "qemu_checksum" {
  type        = string
  default     = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
  description = "Its checksum; none for a disk of your own."
}

variable "qemu_accelerator" {
  type        = string
  default     = "kvm"
  description = "kvm, or tcg where there is no hardware to help (slow)."
}

variable "qemu_output" {
  type        = string
  default     = "build/qemu"
  description = "Where the finished disk goes; the directory must not be there yet."
}

variable "qemu_args" {
  type        = list(list(string))
  default     = [["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  description = "Further arguments of qemu. The default tells cloud-init where its data is."
}

locals {
  stamp = formatdate("YYYYMMDDhhmmss", timestamp())
}
