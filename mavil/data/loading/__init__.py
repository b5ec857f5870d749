"""Raw clips -> samples -> batches: worker processes, what they may leave out, and the place to go on from."""
