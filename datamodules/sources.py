"""The data sets by name: what ``data.name`` means."""

from datamodules.fracatlas import FracAtlasDataModule
from datamodules.mura import MuraDataModule
from datamodules.phantom.source import PhantomDataModule
from datamodules.radiographs import RadiographDataModule
from datamodules.table import TableDataModule

SOURCES: dict[str, type[RadiographDataModule]] = {
    source.name: source
    for source in (PhantomDataModule, MuraDataModule, FracAtlasDataModule, TableDataModule)
}
