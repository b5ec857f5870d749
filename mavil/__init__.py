"""MAViL in the open: masked audio-video learning, from media files to embeddings."""

__version__ = "0.1.0"
