"""Training a stage, and stopping so that nothing is lost.

Read first: ``loop`` (from the command to the last line), then ``preemption`` (signals, requeue) and
``wandb`` (what leaves this machine, and when not).
"""
