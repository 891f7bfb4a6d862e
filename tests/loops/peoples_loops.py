"""The loops that people train in, by name: their own, and those of trainers and libraries."""

from __future__ import annotations

from .accelerate_loops import ACCUMULATING, CLOSURE
from .harness import Loop
from .hugging_face import TRAINER
from .lightning_loops import AUTOMATIC, FABRIC, MANUAL
from .plain import PLAIN
from .skorch_loop import SKORCH
from .timm_script import TIMM

PEOPLES_LOOPS: dict[str, Loop] = {
    "plain": PLAIN,
    "Trainer": TRAINER,
    "Lightning": AUTOMATIC,
    "Lightning, manual": MANUAL,
    "Fabric": FABRIC,
    "timm": TIMM,
    "accelerate": CLOSURE,
    "accelerate, accumulating": ACCUMULATING,
    "skorch": SKORCH,
}
