"""What ``tools/benchmark.py`` measures: decoding, the loader, the memory of its workers, and its start."""
