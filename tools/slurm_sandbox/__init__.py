"""A private SLURM on this machine, for tests and for trying out a job: munge, a controller and several nodes."""
