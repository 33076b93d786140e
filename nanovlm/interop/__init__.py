"""In and out: checkpoints of upstream nanoVLM, transformers, the hub."""
