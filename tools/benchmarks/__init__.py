"""What ``tools/benchmark.py`` measures: decoding, the loader, its workers, its start, steps of training, passes of models."""
