"""Why accuracy is lost: FP32 beside the integers, tensor by tensor, and what would help."""
