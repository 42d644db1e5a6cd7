# What can be chosen. Set it with -var 'NAME=VALUE', or in a file given with -var-file. README.md has the same as a table.

# -- what goes in -----------------------------------------------------------------------------------------------------

variable "payload" {
  type        = string
  default     = "build/payload"
  description = "The directory that packer/payload.sh made: the wheel, the locked dependencies, the units, the install script."
}

variable "config" {
  type        = string
  default     = ""
  description = "The agent's configuration for this image, a .toml file: which sources to take bundles from, which signers to believe. Empty: systemd/config.toml, which serves the machine's own identity."

  validation {
    condition     = regex_replace(var.config, "^.*[.]toml$", "") == ""
    error_message = "The configuration must be a file whose name ends in .toml."
  }
}

variable "signers" {
  type        = list(string)
  default     = []
  description = "Public keys of the signers that the image believes (its trust anchors): files that go to /etc/credential-agent/signers/ under their own names. The build fails on a private key."

  validation {
    condition     = length([for name in var.signers : name if regex_replace(name, "^.*[.](jwk|jwks|json|pem|pub)$", "") != ""]) == 0
    error_message = "The signers must be public keys in files whose names end in .jwk, .jwks, .json, .pem or .pub."
  }
}

variable "install_options" {
  type        = string
  default     = ""
  description = "Further options of install.sh, such as --no-redirect or --worker dask."
}

variable "name" {
  type        = string
  default     = "credential-agent-worker"
  description = "The beginning of the image's name (the time of the build is added), and the family on Google."

  validation {
    condition     = var.name != "" && regex_replace(var.name, "^[a-z][a-z0-9-]{1,46}$", "") == ""
    error_message = "The name must be 2 to 47 lower-case letters, digits and hyphens, a letter first, so that both clouds take it."
  }
}

# -- Amazon EC2 -------------------------------------------------------------------------------------------------------

variable "aws_region" {
  type        = string
  default     = "eu-west-1"
  description = "The region where the AMI is built and kept."
}

variable "aws_copy_to_regions" {
  type        = list(string)
  default     = []
  description = "Further regions to copy the AMI to."
}

variable "aws_source_owner" {
  type        = string
  default     = "136693071363"
  description = "The account that owns the image to start from; the default is Debian's. Amazon Linux: amazon. Ubuntu: 099720109477."

  validation {
    condition     = var.aws_source_owner != "" && regex_replace(var.aws_source_owner, "^([0-9]{12}|amazon|self)$", "") == ""
    error_message = "The owner must be an account of 12 digits, amazon or self: by its name alone anybody's image could match."
  }
}

variable "aws_source_name" {
  type        = string
  default     = "debian-12-amd64-*"
  description = "The name of the image to start from; the newest that matches is taken. Amazon Linux: al2023-ami-2023*-x86_64."
}

variable "aws_ssh_username" {
  type        = string
  default     = "admin"
  description = "The first user of that image: admin (Debian), ubuntu (Ubuntu), ec2-user (Amazon Linux)."
}

variable "aws_instance_type" {
  type        = string
  default     = "t3.small"
  description = "What to build on. It decides the processor: an arm64 payload needs an arm64 source image and type."
}

variable "aws_subnet_id" {
  type        = string
  default     = ""
  description = "The subnet to build in. Empty: the account's default network."
}

variable "aws_encrypt" {
  type        = bool
  default     = false
  description = "Encrypt the AMI's snapshots with the account's default key."
}

# -- Google Compute Engine --------------------------------------------------------------------------------------------

variable "gcp_project" {
  type        = string
  default     = "project-id"
  description = "The project that builds and keeps the image. There is no useful default."
}

variable "gcp_zone" {
  type        = string
  default     = "europe-west1-b"
  description = "The zone where the image is built."
}

variable "gcp_source_family" {
  type        = string
  default     = "debian-12"
  description = "The family of the image to start from: debian-12, ubuntu-2404-lts-amd64."
}

variable "gcp_source_project" {
  type        = string
  default     = "debian-cloud"
  description = "The project that publishes that family: debian-cloud, ubuntu-os-cloud."
}

variable "gcp_machine_type" {
  type        = string
  default     = "e2-small"
  description = "What to build on."
}

variable "gcp_network" {
  type        = string
  default     = "default"
  description = "The network to build in."
}

variable "gcp_use_iap" {
  type        = bool
  default     = false
  description = "Reach the builder through Identity-Aware Proxy and give it no public address. Needs gcloud; offline, a payload with a wheelhouse and a source image with nftables."
}

# -- qemu -------------------------------------------------------------------------------------------------------------

variable "qemu_source" {
  type        = string
  default     = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
  description = "The disk to start from, a URL or a path. It must have cloud-init."
}

variable "qemu_checksum" {
  type        = string
  default     = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
  description = "Its checksum (sha256:..., sha512:..., file:URL); none for a disk of your own."
}

variable "qemu_seed" {
  type        = string
  default     = "build/seed"
  description = "The directory that packer/seed.sh made: a key for this build, and cloud-init's data with its public half."
}

variable "qemu_accelerator" {
  type        = string
  default     = "kvm"
  description = "kvm (Linux), hvf (macOS), or tcg where there is no hardware to help (slow: a quarter of an hour)."

  validation {
    condition     = contains(["kvm", "hvf", "tcg"], var.qemu_accelerator)
    error_message = "The accelerator must be kvm, hvf or tcg."
  }
}

variable "qemu_disk_size" {
  type        = string
  default     = "8G"
  description = "How large the finished disk is for the machine. The file grows as it is written to."
}

variable "qemu_output" {
  type        = string
  default     = "build/qemu"
  description = "Where the finished disk, worker.qcow2, goes. The directory must not be there yet."
}

variable "qemu_args" {
  type        = list(list(string))
  default     = []
  description = "Further arguments for qemu, such as [[\"-serial\", \"file:console.log\"]]."
}
