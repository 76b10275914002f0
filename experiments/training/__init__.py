"""Training a stage from its configuration to its checkpoints, and stopping so that nothing is lost.

Read ``loop`` first, top to bottom; then ``preemption``: signals and the way back into SLURM's
queue. ``wandb`` keeps W&B from stopping a run.
"""
