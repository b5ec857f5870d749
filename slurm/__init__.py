"""Jobs on a cluster: ``python slurm/submit.py --help``. Nothing here imports ``mavil``: a job runs its command line."""
