"""Files <-> tensors. A checkpoint is a Hugging Face directory; nothing half-written ever has a final name."""
