"""SLURM jobs, and sweeps that are killed and resumed like their runs.

Read first: ``jobs`` (what ``make submit`` sends), then ``sweeping`` (a sweep file's trials, and how
several workers share them).
"""
