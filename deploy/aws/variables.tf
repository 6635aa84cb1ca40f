variable "name" {
  description = "Prefix of all names, and the name of the registry's repository"
  type        = string
  default     = "ml-filter"
}

variable "region" {
  description = "AWS region"
  type        = string
}

variable "bucket" {
  description = "Name of the bucket (default: NAME-ACCOUNT-REGION)"
  type        = string
  default     = null
}

variable "read_buckets" {
  description = "Names of other buckets with sources, which steps may read"
  type        = list(string)
  default     = []
}

variable "delete_data" {
  description = "Let `terraform destroy` delete a bucket and a registry that are not empty"
  type        = bool
  default     = false
}
