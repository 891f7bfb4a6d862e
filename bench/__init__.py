"""sam-bench: does sharpness-aware minimization beat SGD and Adam, by how much, and at what price?

The public names, each imported when it is first used:

    SAM                                     the optimizer, for your own training loop
    run(experiment, ...)                    an experiment file's runs, from Python; the `bench` command does the same
    Task, Split, Metric, OptimizerWrapper   what to subclass and use in a plug-in
    ImageFolder, CsvTable                   tasks of your own files, to subclass as well
    register_task, register_model, register_optimizer
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.core.registry import register_model as register_model
    from bench.core.registry import register_optimizer as register_optimizer
    from bench.core.registry import register_task as register_task
    from bench.data.splits import Split as Split
    from bench.launch.run import run as run
    from bench.optim.base.wrapper import OptimizerWrapper as OptimizerWrapper
    from bench.optim.sam import SAM as SAM
    from bench.tasks.base import Metric as Metric
    from bench.tasks.base import Task as Task
    from bench.tasks.csv_table import CsvTable as CsvTable
    from bench.tasks.image_folder import ImageFolder as ImageFolder

_HOMES = {
    "SAM": "bench.optim.sam",
    "OptimizerWrapper": "bench.optim.base.wrapper",
    "Task": "bench.tasks.base",
    "Split": "bench.data.splits",
    "Metric": "bench.tasks.base",
    "ImageFolder": "bench.tasks.image_folder",
    "CsvTable": "bench.tasks.csv_table",
    "register_task": "bench.core.registry",
    "register_model": "bench.core.registry",
    "register_optimizer": "bench.core.registry",
    "run": "bench.launch.run",
}

__all__ = sorted(_HOMES)


_RENAMED = {"Method": "OptimizerWrapper"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from bench.core.deprecated import warn

        warn(f"bench.{name}", f"bench.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
