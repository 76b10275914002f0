"""What is learned from: index table -> cache -> sampler -> augmentation -> batch.

Read ``index`` (the one thing that differs between sources), ``radiographs`` (the base of all),
``sampler``, ``batches`` and ``cache``, then ``lesions`` and a source such as ``mura``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.sources import SOURCES as SOURCES
    from datamodules.sources import DataError as DataError
    from datamodules.sources import PhantomDataModule as PhantomDataModule
    from datamodules.sources import RadiographDataModule as RadiographDataModule


def __getattr__(name: str) -> object:
    """Import the sources when first asked for: the options are read before PyTorch is there."""
    if name in ("SOURCES", "DataError", "PhantomDataModule", "RadiographDataModule"):
        from datamodules import sources

        return getattr(sources, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
