"""The run folder: what lies in it, who may write to it, and files that are there whole or not at all."""
