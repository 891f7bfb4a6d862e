"""Registries of tasks, models and optimizers, and the plug-ins that add to them.

A factory's keyword-only arguments *are* its hyperparameters: their names, types, bounds and defaults are
read off the signature, so an experiment file is checked against the code that will use it. For a class around a
base optimizer, all arguments with a default are hyperparameters, except those that the suite provides (`PROVIDED`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from bench.core.errors import MANY, BenchError, clipped, nearest

Factory = TypeVar("Factory", bound=Callable[..., Any])
Passes = Callable[[dict[str, Any]], float]
Fetch = Callable[..., None]
Tokenizer = Callable[[dict[str, Any]], Path]
Members = Callable[[], Collection[str]]


def undeclared(params: dict[str, Any]) -> float:
    """Return 1, the passes per step of an optimizer registered without any; see `bench.training.passes`."""
    return 1


PROVIDED = frozenset({"model", "clip_norm", "total_steps", "norm_group"})
"""Arguments of a class around a base optimizer that are no hyperparameters: the suite sets these for every method."""

_loading: Path | None = None  # the plug-in file being imported, so that what it registers is known as its own


@dataclass(frozen=True)
class Plugin:
    """A user's file that registers tasks, models or optimizers."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        factory: what builds the thing; its keyword-only arguments are the hyperparameters.
        wraps_base: for optimizers, whether it is built around another one (as SAM is around SGD).
        passes: for optimizers, forward-backward passes per step, from its hyperparameters; `bench.training.passes`
            counts those of one that was registered without.
        fetch: for models, sees that the pretrained weights which these hyperparameters ask for are on this machine.
        tokenizer: for models that read text, the folder of the tokenizer that these hyperparameters ask for.
        note: for models, a sentence that belongs under every table of their results.
        title: for models, what titles call it; "" for its name.
        without: arguments that are no hyperparameters under this name.
        rename: names that hyperparameters have in experiment files, by the names of the factory's arguments.
        needs: for optimizers, settings of `train` that it cannot do without, e.g. {"schedule": "constant"}.
        unfit: for methods, optimizers that they cannot wrap, each with what it lacks.
        plugin: the user's file it came from, None for what the package brings.
        members: for a family such as "timm/", whose names are many, lists them (without the prefix).
        member: which of the family this entry is.
    """

    name: str
    factory: Callable[..., Any]
    wraps_base: bool = False
    passes: Passes = undeclared
    fetch: Fetch = lambda params: None
    tokenizer: Tokenizer | None = None
    note: str = ""
    title: str = ""
    without: Collection[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict, hash=False)
    needs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    unfit: Mapping[str, str] = field(default_factory=dict, hash=False)
    plugin: Plugin | None = None
    members: Members | None = None
    member: str = ""

    def build(self, *args: Any, **params: Any) -> Any:
        """Call the factory; a family's factory also receives the member's name as the last positional argument.

        Raises:
            BenchError: it does not take these arguments, or returns None.
        """
        args = (*args, *([self.member] if self.member else []))
        # Names of the factory's own: those in experiment files stand beside the settings of a base.
        params = {argument: params.pop(name) for argument, name in self.rename.items() if name in params} | params
        if self._is_wrapper_class and len(args) == 2 and "model" in inspect.signature(self.factory).parameters:
            # A class's second argument is for its users to pick: `SAM(base, 0.05)`.
            base, model = args
            args, params = (base,), {"model": model, **params}
        try:
            # Apart from the call: a TypeError inside of the factory is a bug of its author and keeps its traceback.
            inspect.signature(self.factory).bind(*args, **params)
        except TypeError as error:
            raise BenchError(f"{self.name} cannot be built: {error}; {self._wanted(args)}") from error
        built = self.factory(*args, **params)
        # A factory whose author forgot `return`.
        if built is None:
            raise BenchError(f"{self.name} cannot be built: its factory{self._where()} returns None")
        return built

    def _wanted(self, args: tuple[Any, ...]) -> str:
        count = f"{len(args)} positional argument{'s' * (len(args) != 1)}"
        return f"its factory{self._where()} is called with {count}, hyperparameters come after a *"

    def _where(self) -> str:
        return f" in {self.plugin.path}" if self.plugin else ""

    def fetch_weights(self, params: dict[str, Any]) -> None:
        """Ensure that the weights a model starts from are on this machine; see `fetch`."""
        self.fetch(*([self.member] if self.member else []), params)

    def names(self) -> list[str]:
        """Return the names to write in an experiment: a family's members, unless they are too many to list."""
        members = self.members() if self.members else ()
        return [self.name + member for member in members] if 0 < len(members) <= MANY else [self.name]

    @property
    def _is_wrapper_class(self) -> bool:
        return self.wraps_base and inspect.isclass(self.factory)

    def _is_hyperparameter(self, argument: inspect.Parameter) -> bool:
        if argument.name in self.without or (self._is_wrapper_class and argument.name in PROVIDED):
            return False
        # Users pass a class's options by position, too: `SAM(base, 0.05)`. The one without a default is the base.
        if self._is_wrapper_class and argument.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            return argument.default is not inspect.Parameter.empty
        return argument.kind is inspect.Parameter.KEYWORD_ONLY

    @functools.cached_property
    def schema(self) -> type[BaseModel]:
        """Return the hyperparameters as a pydantic model: strict types, unknown keys refused."""
        # The annotations of a class's arguments are those of its `__init__`.
        target = self.factory.__init__ if inspect.isclass(self.factory) else self.factory
        hints = get_type_hints(target, include_extras=True)
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(self.factory).parameters.values():
            if self._is_hyperparameter(parameter):
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                name = self.rename.get(parameter.name, parameter.name)
                fields[name] = (hints.get(parameter.name, Any), default)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:  # **options: Unpack[a TypedDict that many share]
                for table in get_args(hints.get(parameter.name)):
                    shared = get_type_hints(table, include_extras=True)
                    fields |= {name: (hint, None) for name, hint in shared.items() if name not in fields}
        return create_model(self.name, __config__=STRICT, **fields)

    @property
    def description(self) -> str:
        """Return the first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]


# No protected names: a hyperparameter may well begin with "model_".
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=())


class Registry:
    """Names of one kind of thing. Duplicates raise; unknown names answer with the nearest valid ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str,
        *,
        wraps_base: bool = False,
        passes: Passes = undeclared,
        fetch: Fetch = lambda params: None,
        tokenizer: Tokenizer | None = None,
        note: str = "",
        title: str = "",
        members: Members | None = None,
        without: Collection[str] = (),
        rename: Mapping[str, str] | None = None,
        needs: Mapping[str, Any] | None = None,
        unfit: Mapping[str, str] | None = None,
    ) -> Callable[[Factory], Factory]:
        """Return a decorator that adds a factory under `name`.

        Args:
            name: the name used in experiment files. A name that ends in "/" is a family: "timm/" answers to "timm/NAME"
                for each NAME in `members`, and its factory takes that NAME as a last positional argument.
            wraps_base: optimizers only: the factory takes (base_optimizer, model) instead of (params). A class
                with an argument `model` is given it by name.
            passes: optimizers only: forward-backward passes per step, the mean over many, given the hyperparameters;
                default: as many as a few steps on a small network take.
            fetch: models only: given the hyperparameters (for a family, NAME and these), downloads the weights that
                they ask for, if those are missing; called before any run starts.
            tokenizer: models that read text only: given the hyperparameters, the folder of the tokenizer's files.
            note: models only: a sentence that belongs under every table of their results.
            title: models only: the model's name in titles of experiments; default: its name.
            members: families only: lists the names.
            without: arguments of the factory that are no hyperparameters under this name.
            rename: other names for hyperparameters in experiment files: {"decay": "ema_decay"} keeps a method's setting
                apart from its base's.
            needs: optimizers only: settings of `train` that it cannot do without, checked before anything runs.
            unfit: optimizers with `wraps_base` only: those that it cannot wrap, each with a verb and what it lacks.

        Raises:
            BenchError: the name is taken.
        """

        def add(factory: Factory) -> Factory:
            plugin = _plugin_file(_loading) if _loading else None
            if name in self._entries:
                taken = self._entries[name].factory
                raise BenchError(
                    f'{self.kind} "{name}" is registered twice: by {taken.__module__}.{taken.__qualname__} '
                    f"and by {factory.__module__}.{factory.__qualname__}; rename one of them"
                )
            self._entries[name] = entry = Entry(
                name=name,
                factory=factory,
                wraps_base=wraps_base,
                passes=passes,
                fetch=fetch,
                tokenizer=tokenizer,
                note=note,
                title=title,
                without=without,
                rename=rename or {},
                needs=needs or {},
                unfit=unfit or {},
                plugin=plugin,
                members=members,
            )
            if plugin:
                entry.schema  # noqa: B018 - a signature that cannot be read is told now, with its line
            return factory

        return add

    def __getitem__(self, name: str) -> Entry:
        if name not in self:
            raise BenchError(f'unknown {self.kind} "{name}"; {self.nearest(name)}')
        if name in self._entries:
            return self._entries[name]
        # `in` has found the family: the assert tells only the type checker.
        family, member = self._family(name)
        assert family is not None
        return replace(family, name=name, member=member)

    def __contains__(self, name: str) -> bool:
        if name in self._entries:
            # A family by itself cannot be built, only its members.
            return not name.endswith("/")
        family, member = self._family(name)
        return family is not None and family.members is not None and member in family.members()

    def nearest(self, name: str) -> str:
        """Return, in words, the registered names that are closest to `name`."""
        family, _ = self._family(name)
        if family is None or family.members is None:
            return nearest(name, (other for entry in self for other in entry.names()))
        return nearest(name, [family.name + other for other in family.members()])

    def _family(self, name: str) -> tuple[Entry | None, str]:
        prefix, slash, member = name.partition("/")
        return self._entries.get(prefix + slash) if slash else None, member

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))


tasks = Registry("task")
models = Registry("model")
optimizers = Registry("optimizer")

register_task = tasks.register
register_model = models.register
register_optimizer = optimizers.register

ENTRY_POINT_GROUP = "bench.plugins"


@functools.cache
def load_builtins() -> None:
    """Fill the registries: the package's own names, then installed packages' (entry points `bench.plugins`)."""
    # Each of these packages imports its modules, which register themselves.
    for package in ("bench.tasks", "bench.models", "bench.optim"):
        importlib.import_module(package)
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            raise BenchError(f"entry point {point.name} = {point.value} fails to import: {error!r}") from error


_loaded: dict[Path, Plugin] = {}


def load_plugin(path: Path) -> Plugin:
    """Import a user's file once, so that what it registers can be named in the experiment.

    Raises:
        BenchError: the file is missing, fails to import, or registers a name that is taken.
    """
    global _loading
    try:
        path = path.resolve()
        if path not in _loaded and not path.is_file():
            raise BenchError(f"plug-in {path} does not exist")
    except OSError as error:  # a name longer than any file's
        raise BenchError(f"plug-in {clipped(str(path))}: {error.strerror}") from error
    if path in _loaded:
        return _loaded[path]
    # Before the plug-in, so that a name of the package's own is taken when the plug-in comes.
    load_builtins()
    # With a hash of the path: two files of one name in two folders are two modules.
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchError(f"plug-in {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up there
    _loading = path
    try:
        with _undone_on_error():
            spec.loader.exec_module(module)
    # SystemExit too: a script that ends with sys.exit() must not end the launch.
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BenchError(f"plug-in {path} fails to import: {_where(error, path)}") from error
    finally:
        _loading = None
    # Only after success: a plug-in that failed can be mended and loaded again.
    _loaded[path] = _plugin_file(path)
    return _loaded[path]


@contextmanager
def _undone_on_error() -> Iterator[None]:
    """Remove every name that a plug-in has registered if the plug-in fails."""
    before = [(registry, dict(registry._entries)) for registry in (tasks, models, optimizers)]
    try:
        yield
    except BaseException:
        for registry, entries in before:
            registry._entries = entries
        raise


def _plugin_file(path: Path) -> Plugin:
    return Plugin(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _where(error: BaseException, path: Path) -> str:
    """Return the error with the line of the plug-in that raised it; a SyntaxError already names its line."""
    what = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    line, traceback = None, error.__traceback__
    # The last line that is found counts: the innermost one within the plug-in's own file.
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return what + (f" (line {line})" if line else "")
