# Steps: read and write the bucket, pull the image, write logs. SageMaker starts their jobs under the same role.
data "aws_iam_policy_document" "steps_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

data "aws_iam_policy_document" "steps" {
  statement {
    sid       = "Bucket"
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.data.arn}/*"]
  }
  dynamic "statement" {
    for_each = length(var.read_buckets) > 0 ? [1] : []
    content {
      sid       = "Sources"
      actions   = ["s3:ListBucket", "s3:GetObject"]
      resources = flatten([for name in var.read_buckets : ["arn:${local.partition}:s3:::${name}", "arn:${local.partition}:s3:::${name}/*"]])
    }
  }
  statement {
    sid       = "Image"
    actions   = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]
    resources = [aws_ecr_repository.image.arn]
  }
  statement {
    sid       = "RegistryLogin" # has no resource
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }
  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${local.logs}:log-group:/aws/sagemaker/*"]
  }
  statement {
    sid       = "Jobs"
    actions   = ["sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob", "sagemaker:AddTags"]
    resources = ["${local.sagemaker}:training-job/*"]
  }
  statement {
    sid       = "JobsWithThisRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.steps.arn]
    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["sagemaker.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "steps" {
  name               = "${var.name}-steps"
  assume_role_policy = data.aws_iam_policy_document.steps_trust.json
}

resource "aws_iam_role_policy" "steps" {
  name   = "steps"
  role   = aws_iam_role.steps.id
  policy = data.aws_iam_policy_document.steps.json
}

# EventBridge: start pipelines, nothing else.
data "aws_iam_policy_document" "schedules_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

data "aws_iam_policy_document" "schedules" {
  statement {
    actions   = ["sagemaker:StartPipelineExecution"]
    resources = ["${local.sagemaker}:pipeline/*"]
  }
}

resource "aws_iam_role" "schedules" {
  name               = "${var.name}-schedules"
  assume_role_policy = data.aws_iam_policy_document.schedules_trust.json
}

resource "aws_iam_role_policy" "schedules" {
  name   = "schedules"
  role   = aws_iam_role.schedules.id
  policy = data.aws_iam_policy_document.schedules.json
}

# Whoever submits runs, a person or CI: attach this policy to them.
data "aws_iam_policy_document" "submit" {
  statement {
    sid = "Pipelines"
    actions = [
      "sagemaker:CreatePipeline", "sagemaker:UpdatePipeline", "sagemaker:DeletePipeline", "sagemaker:DescribePipeline",
      "sagemaker:StartPipelineExecution", "sagemaker:StopPipelineExecution", "sagemaker:DescribePipelineExecution",
      "sagemaker:ListPipelineExecutionSteps", "sagemaker:AddTags",
    ]
    resources = ["${local.sagemaker}:pipeline/*"]
  }
  statement {
    sid       = "Schedules"
    actions   = ["scheduler:CreateSchedule", "scheduler:UpdateSchedule", "scheduler:DeleteSchedule", "scheduler:GetSchedule"]
    resources = ["arn:${local.partition}:scheduler:${var.region}:${local.account}:schedule/default/*"]
  }
  statement {
    sid       = "Lists" # have no resource
    actions   = ["sagemaker:ListPipelines", "scheduler:ListSchedules"]
    resources = ["*"]
  }
  statement {
    sid       = "Results"
    actions   = ["s3:ListBucket", "s3:GetObject", "s3:PutObject"]
    resources = [aws_s3_bucket.data.arn, "${aws_s3_bucket.data.arn}/*"]
  }
  statement {
    sid       = "PassRoles"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.steps.arn, aws_iam_role.schedules.arn]
    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["sagemaker.amazonaws.com", "scheduler.amazonaws.com"]
    }
  }
}

resource "aws_iam_policy" "submit" {
  name   = "${var.name}-submit"
  policy = data.aws_iam_policy_document.submit.json
}
