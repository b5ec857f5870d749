"""Shards -> raw clips: the order of an epoch, the place to go on from, and where the bytes come from."""
