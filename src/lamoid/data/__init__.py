"""Text -> batches. The position in the data is a small plain value, so that a run can go on exactly where it was."""
