"""What several tests share: a runner of functions in real processes, and tiny settings."""
