"""HEAR's shallow evaluation: task folders, cached embeddings, a small predictor per fold, metrics, and a table."""
