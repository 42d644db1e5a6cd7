# A Compute Engine image. The builder's own permissions are Application Default Credentials; none of them reach the image.

source "googlecompute" "worker" {
  project_id   = var.gcp_project
  zone         = var.gcp_zone
  machine_type = var.gcp_machine_type
  network      = var.gcp_network

  image_name        = local.image_name
  image_family      = var.name
  image_description = "Worker with the credential agent"
  image_labels      = local.labels
  labels            = local.labels

  source_image_family     = var.gcp_source_family
  source_image_project_id = [var.gcp_source_project]

  # The machine that builds has no identity: there is nothing to leave behind.
  disable_default_service_account = true

  use_iap          = var.gcp_use_iap
  omit_external_ip = var.gcp_use_iap
  use_internal_ip  = var.gcp_use_iap

  # The guest agent makes this user and removes it where the image is used, because its key is in no metadata there.
  ssh_username              = "packer"
  ssh_clear_authorized_keys = true
}
