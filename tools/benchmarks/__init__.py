"""What ``tools/benchmark.py`` measures: decoding, the loader, the memory of its workers, its start, and steps of training."""
