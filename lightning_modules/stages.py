"""The stages by name: what a configuration's ``stage`` means."""

from lightning_modules.stage1 import Stage1Classifier
from lightning_modules.stage2 import Stage2GuidedAttention
from lightning_modules.stage3 import Stage3WeaklySupervised

STAGES: dict[str, type[Stage1Classifier]] = {
    module.stage: module
    for module in (Stage1Classifier, Stage2GuidedAttention, Stage3WeaklySupervised)
}
