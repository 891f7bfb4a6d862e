"""Options of the SAM family: which weights are perturbed and at which steps, in experiment files and in own loops.

A factory takes them as `**options: Unpack[...]` of one of these tables; each that is left out, or None, leaves the
algorithm as its paper has it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo
from typing_extensions import TypedDict

from bench.core.errors import nearest, shown
from bench.optim.base.types import AtLeastOne, NonNegative


def _share_of_training(moment: Any, info: ValidationInfo) -> Any:
    """Turn "epoch 100" into a share of the training's epochs, which the context has; return all but text unchanged."""
    if not isinstance(moment, str):
        return moment
    if not (said := re.fullmatch(r"epoch (\d+)", moment)):
        raise ValueError('must be a share of training (0.5) or a number of epochs ("epoch 100")')
    epochs = (info.context or {}).get("epochs")
    if not epochs:
        raise ValueError("epochs can be used only in an experiment file; give a share of training (0.5)")
    if int(said[1]) > epochs:
        raise ValueError(f"training ends at epoch {epochs}")
    return int(said[1]) / epochs


Moment = BeforeValidator(_share_of_training)
"""A share of training; in an experiment's file also "epoch 100": after 100 epochs."""


def _after_its_beginning(until: float | None, info: ValidationInfo) -> float | None:
    # `info.data` has only the fields declared above: perturb_from must stand before perturb_until.
    begin = info.data.get("perturb_from") or 0.0
    if until is not None and until <= begin:
        raise ValueError(f"must be above perturb_from ({begin})")
    return until


def _of_a_schedule(end: float | None, info: ValidationInfo) -> float | None:
    # `info.data` has only the fields declared above: rho_schedule must stand before rho_end and lr_min.
    if end is not None and info.data.get("rho_schedule") in (None, "constant"):
        raise ValueError('needs rho_schedule too: "linear", "cosine" or "lr"')
    return end


def _of_the_lr(lowest: float | None, info: ValidationInfo) -> float | None:
    if lowest is not None and info.data.get("rho_schedule") != "lr":
        raise ValueError('needs rho_schedule = "lr" too')
    return lowest


class Perturbation(TypedDict, total=False):
    """The options of every method that perturbs."""

    # As strict as an experiment file is checked, for options given in a user's own code.
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    perturb_only: Literal["norm"] | None
    """"norm": only the scales and shifts of normalisation layers (Mueller et al. 2023, arXiv:2306.04226). None: all."""
    perturb_from: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, Moment]
    """Share of training after which perturbing begins: 0.5 of 200 epochs, or "epoch 100". None: at once."""
    perturb_until: Annotated[Annotated[float, Field(gt=0, le=1)] | None, AfterValidator(_after_its_beginning), Moment]
    """Share of training after which it ends, or "epoch 150". None: never."""
    rho_schedule: Literal["constant", "linear", "cosine", "lr"] | None
    """How rho goes to rho_end over training: along a line, half a cosine, or as lr does from its largest value to
    lr_min: rho_end + (rho - rho_end) (lr - lr_min) / (lr_max - lr_min) (Zhuang et al. 2022, arXiv:2203.08065, section
    4.1: equation of rho_t), and rho_end where lr is below lr_min, as it may be in a warm-up. None: it stays."""
    rho_end: Annotated[NonNegative | None, AfterValidator(_of_a_schedule)]
    """Where the schedule of rho ends. None: at 0."""
    lr_min: Annotated[NonNegative | None, AfterValidator(_of_the_lr)]
    """The smallest lr of a schedule that does not end at 0, for rho_schedule "lr". None: 0, as of the schedules of
    `bench run`, or with OneCycleLR what that ends at."""


class Every(TypedDict, total=False):
    perturb_every: AtLeastOne | None
    """Perturb in every so many steps only, beginning with the first; the others are the base's. None: 1."""


class Ascent(Perturbation, total=False):
    """The options of methods that perturb along a direction made from the gradient of a batch."""

    m: AtLeastOne | None
    """Examples that share one perturbation, a divisor of the batch size (m-sharpness). None: the whole batch."""
    ascent_decay: bool | None
    """Whether weight_decay * w, with each group's own weight decay, is added to the gradient that is ascended along.
    None: no, the ascent follows the loss alone."""


class PerturbationOptions(Perturbation, Every, total=False):
    pass


class AscentOptions(Ascent, Every, total=False):
    pass


_ALL = TypeAdapter(AscentOptions)


def checked(name: str, options: Any) -> AscentOptions:
    """Return all options of `name`, with None for those that were not given.

    Raises:
        TypeError: there is no such option.
        ValueError: a value is impossible, by itself or beside another.
    """
    try:
        _ALL.validate_python(options)
    except ValidationError as error:
        # A constructor raises on the first fault; an experiment file lists all (`bench.core.schema`).
        fault = error.errors()[0]
        key = fault["loc"][0]
        if fault["type"] == "extra_forbidden":
            raise TypeError(
                f"{name} has no option {key!r}; {nearest(str(key), AscentOptions.__annotations__)}"
            ) from None
        # pydantic's sentence, in the words of this package's other messages.
        words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        words = words.replace("greater than or equal to", ">=").replace("less than or equal to", "<=")
        raise ValueError(f"{name}: {key} {words}, got {fault['input']!r}") from None
    everything: AscentOptions = {**dict.fromkeys(AscentOptions.__annotations__), **options}  # type: ignore[typeddict-item]
    return everything


def check_choice(name: str, key: str, value: object, valid: tuple[str, ...]) -> None:
    """Raise ValueError unless a setting of `name` is one of the valid words.

    Experiment files are checked against the annotations; in a user's own code a misspelt word would be a method that
    nobody has described.
    """
    if value not in valid:
        raise ValueError(f"{name}: {key} must be {' or '.join(map(repr, valid))}, got {shown(value)}")


def share_perturbed(params: dict[str, Any]) -> float:
    """Return the share of all steps that perturbs, from a method's hyperparameters; planning counts passes with it."""
    # With rho 0 and a rho_end above 0 a schedule rises from 0: such a method perturbs.
    if not params["rho"] and not params.get("rho_end"):
        return 0.0
    begin, end = params.get("perturb_from") or 0.0, params.get("perturb_until") or 1.0
    return float((end - begin) / (params.get("perturb_every") or 1))


def one_more_where_perturbed(params: dict[str, Any]) -> float:
    """Return the passes per step of a method that adds a second pass to each step that perturbs."""
    return 1 + share_perturbed(params)
