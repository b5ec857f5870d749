"""Jobs on a cluster: ``python slurm/submit.py --help``. A job runs the command line; of ``mavil`` only its pipelines are read."""
