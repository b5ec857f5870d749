"""Numbers out: averages, JSONL, TensorBoard, services, and where the time went."""
