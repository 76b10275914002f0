"""Many trainings: jobs for SLURM (``experiments.submit``) and sweeps (``experiments.sweep``).

Read ``jobs`` for the first. For the second ``points`` (what a sweep file asks for), then
``sweeping`` (one training after the other, shared with other processes; the table and the plot).
"""
