"""Training a stage, and stopping so that nothing is lost: read ``loop``, then ``preemption``."""
