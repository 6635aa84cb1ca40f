output "stack_options" {
  description = "Options of `poetry poe stack-aws`"
  value       = "--region ${var.region} --bucket ${aws_s3_bucket.data.id} --execution-role ${aws_iam_role.steps.arn} --scheduler-role ${aws_iam_role.schedules.arn} --registry ${split("/", aws_ecr_repository.image.repository_url)[0]}"
}

output "repository" {
  description = "Where the image is pushed"
  value       = aws_ecr_repository.image.repository_url
}

output "submit_policy" {
  description = "ARN of the policy for whoever submits runs"
  value       = aws_iam_policy.submit.arn
}
