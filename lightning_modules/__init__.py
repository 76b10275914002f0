"""What learns: one LightningModule per stage, each adding to the one before what the paper adds.

Read ``losses`` and ``attention`` (the paper's equations), ``encoder``, then ``stage1``, ``stage2``
and ``stage3``; ``options`` says what can be set, ``stages`` which stages there are.
"""
