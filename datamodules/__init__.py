"""What is learned from: index table -> cache -> sampler -> augmentation -> batch.

Read ``index`` (the one thing that differs between sources), ``radiographs`` (the base of all),
``batches`` and ``cache``, then ``lesions`` and a source such as ``mura``; ``sources`` names them.
"""
