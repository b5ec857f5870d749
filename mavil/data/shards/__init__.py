"""Shards: WebDataset tars with an index and a table of clips; made, verified and measured."""
