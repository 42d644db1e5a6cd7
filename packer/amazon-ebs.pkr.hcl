# An AMI. The builder's own permissions come from where every AWS program looks; none of them reach the image.

source "amazon-ebs" "worker" {
  region        = var.aws_region
  ami_regions   = var.aws_copy_to_regions
  instance_type = var.aws_instance_type
  subnet_id     = var.aws_subnet_id
  encrypt_boot  = var.aws_encrypt

  ami_name        = local.image_name
  ami_description = "Worker with the credential agent"
  tags            = local.labels
  run_tags        = merge(local.labels, { Name = "packer-${var.name}" })

  source_ami_filter {
    filters = {
      name                = var.aws_source_name
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = [var.aws_source_owner]
    most_recent = true
  }

  # Instances of this AMI answer no request without a session token (IMDSv2), however they are started.
  imds_support = "v2.0"

  # The same for the instance that builds it.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # A key of one build, gone from the image at its end. Not Ed25519: it is refused where FIPS is asked for.
  ssh_username              = var.aws_ssh_username
  ssh_clear_authorized_keys = true
}
