"""Many trainings: jobs for SLURM (``jobs``), and sweeps without a server (``sweeping``)."""
