"""What happens around training.

Read ``confidence`` (the paper's alpha), ``averaging`` and ``checkpoints``; ``panels`` and
``progress`` are for people. ``options`` says what can be set, and needs no PyTorch.
"""
