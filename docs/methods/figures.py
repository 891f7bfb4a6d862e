"""Draw the figures of docs/methods.md: `python docs/methods/figures.py [METHOD ...]`.

Every figure runs the registered optimizer itself on a loss of two weights, with a sharp minimum and a flat one. What is
drawn of a step is what the optimizer did: the points where it evaluated the loss, and where the weights went.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from bench.core import registry
from bench.optim.base.averaging import Averaging, evaluation_weights, keeps_evaluation_weights, to_training

mpl.use("svg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
START, STEPS, SHOWN = (-0.35, 1.05), 40, {"swa": 30}
"""Where paths begin, their number of steps, and the step that is enlarged, if not the 6th."""

WIDTH, HEIGHT = 3.4, 2.5
"""Of the part of the loss that is drawn."""

ORANGE, GREY, BLUE = "#e8710a", "#8a8a8a", "#3b82c4"
BASE = {"lr": 0.06, "momentum": 0.6}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": BASE,
    "adam": {"lr": 0.08},
    "adamw": {"lr": 0.08, "weight_decay": 0.3},
    "nadamw": {"lr": 0.08},
    "lion": {"lr": 0.05},
    "schedule-free-sgd": {"lr": 0.3, "momentum": 0.8},
    "schedule-free-adamw": {"lr": 0.15, "beta1": 0.8},
    "sam": {"rho": 0.3},
    "asam": {"rho": 0.4},
    "gsam": {"rho": 0.3, "alpha": 0.3},
    "wsam": {"rho": 0.3, "gamma": 0.6},
    "friendly-sam": {"rho": 0.3, "lmbda": 0.6, "sigma": 1.0},
    "functional-sam": {"rho": 0.3},
    "xsam": {"rho": 0.3, "rho_max": 0.4, "search_every": 4},
    "esam": {"rho": 0.3},
    "le-sam": {"rho": 0.6, "sigma": 0.3},
    "looksam": {"rho": 0.3, "k": 5},
    "ae-sam": {"rho": 0.3},
    "sampa": {"rho": 0.3},
    "momentum-sam": {"rho": 0.3},
    "random-direction": {"rho": 0.3},
    "ema": {"ema_decay": 0.85},
    "swa": {"swa_from": 0.5},
}
"""Hyperparameters of the figures: large radii, so that a step can be seen."""

PLACES = {"sampa": ("y", "w + e")}
"""What the points are called at which a step evaluates the loss, where not all that are away from w are w + e."""

WITHOUT = ("muon", "soap")
"""Methods without a figure: what they do to matrices cannot be seen on two weights."""

EXAMPLES = 0.12 * torch.tensor([[1.0, 0.2], [-0.6, 0.9], [0.3, -1.0], [-0.7, -0.1]])
"""How far the loss of each of four examples is shifted against the mean loss."""


def landscape(x: Any, y: Any) -> Any:
    """Return the loss of two weights: a narrow well on the left, a wide one on the right, in a bowl."""
    return loss_of(*logits(x, y))


def logits(x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Return the landscape's network: squared distances from the sharp well, the flat one and the bowl's middle."""
    sharp = ((x + 0.75) / 0.22) ** 2 + ((y + 0.15) / 0.30) ** 2
    flat = ((x - 0.75) / 0.75) ** 2 + ((y + 0.25) / 0.65) ** 2
    return sharp, flat, x**2 + y**2


def loss_of(sharp: Any, flat: Any, bowl: Any) -> Any:
    exp = torch.exp if isinstance(sharp, Tensor) else np.exp
    return 1.6 - 1.15 * exp(-sharp) - 1.25 * exp(-flat) + 0.18 * bowl


@dataclass
class Step:
    """One step: the points where the loss was evaluated with its gradient there, and the weights around the step."""

    before: tuple[float, ...]
    evaluated: list[tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=list)
    after: tuple[float, ...] = (0.0, 0.0)


class Toy(torch.nn.Module):
    """The model: two weights; its loss on some of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor(START))

    def forward(self, examples: Any = slice(None), seen: Callable[[Tensor], Tensor] = lambda logits: logits) -> Tensor:
        x, y = (self.weights + EXAMPLES[examples]).T
        return loss_of(*seen(torch.stack(logits(x, y))))


def path(name: str) -> tuple[list[Step], list[tuple[float, ...]]]:
    """Run a registered optimizer; return its steps, and the weights for evaluation after each of them."""
    entry = registry.optimizers[name]
    model = Toy()
    if entry.wraps_base:
        optimizer = entry.build(registry.optimizers["sgd"].build(model.parameters(), **BASE), model, **SETTINGS[name])
        optimizer.total_steps = STEPS
    else:
        optimizer = entry.build(model.parameters(), **SETTINGS[name])
    to_training(optimizer)
    averages = isinstance(optimizer, Averaging) or keeps_evaluation_weights(optimizer)
    steps, evaluated = [], [START]
    for _ in range(STEPS):
        step = Step(_point(model.weights))
        optimizer.step(_closure(model, optimizer, step))
        step.after = _point(model.weights)
        steps.append(step)
        if averages:
            with evaluation_weights(optimizer, model, []):
                evaluated.append(_point(model.weights))
    return steps, evaluated if averages else []


def _closure(model: Toy, optimizer: torch.optim.Optimizer, step: Step) -> Callable[..., Tensor]:
    def note(gradient: Tensor) -> None:
        step.evaluated.append((_point(model.weights), _point(gradient)))

    def losses(examples: Any = slice(None)) -> Tensor:  # for ESAM, which goes backward itself
        each = model(examples)
        if torch.is_grad_enabled():
            with torch.enable_grad():
                note(torch.autograd.grad(each.mean(), model.weights, retain_graph=True)[0])
        return each

    def closure() -> Tensor:
        optimizer.zero_grad()
        if getattr(optimizer, "loss_only", False):
            with torch.no_grad():
                return model().mean()
        loss = (model(seen=optimizer.logits) if getattr(optimizer, "takes_logits", False) else model()).mean()
        loss.backward()
        assert model.weights.grad is not None
        note(model.weights.grad)
        return loss

    return losses if getattr(optimizer, "takes_losses", False) else closure


def _point(numbers: Tensor) -> tuple[float, ...]:
    return tuple(numbers.detach().tolist())


def draw(name: str) -> Path:
    """Draw the figure of one method and return its file."""
    steps, evaluated = path(name)
    base, _ = path("sgd") if registry.optimizers[name].wraps_base else ([], [])
    number = SHOWN.get(name, 6)
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "methods",
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), GREY),
    }
    with mpl.rc_context(settings):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.9), layout="constrained")
        _contours(left, (-WIDTH / 2 + 0.2, WIDTH / 2 + 0.2), (-HEIGHT / 2 + 0.1, HEIGHT / 2 + 0.1), 11)
        if base and not evaluated:  # an average leaves training alone
            _line(left, [START, *(step.after for step in base)], GREY, "its base, sgd")
        _line(left, [START, *(step.after for step in steps)], ORANGE, name)
        if evaluated:
            _line(left, evaluated, BLUE, "evaluated")
        left.plot(*START, "o", color=GREY, markersize=4)
        left.legend(frameon=False, fontsize=8, loc="upper right", labelcolor=GREY)
        left.set_title(f"{STEPS} steps", fontsize=9)
        _one_step(right, steps[number - 1], evaluated[number] if evaluated else None, PLACES.get(name, ()))
        right.set_title(f"step {number}", fontsize=9)
        for axes in (left, right):
            axes.set_aspect("equal")
            axes.set(xticks=[], yticks=[])
        file = FOLDER / f"{name}.svg"
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    short = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", file.read_text())
    file.write_text("\n".join(line.rstrip() for line in short.splitlines()) + "\n")
    return file


def _one_step(axes: Any, step: Step, average: tuple[float, ...] | None, places_called: tuple[str, ...]) -> None:
    w = np.array(step.before)
    places = np.array([step.before, step.after, *(place for place, _ in step.evaluated)])
    middle, half = places.mean(0), max(0.25, 1.0 * np.ptp(places, axis=0).max())
    wide = half * WIDTH / HEIGHT
    _contours(axes, (middle[0] - wide, middle[0] + wide), (middle[1] - half, middle[1] + half), 8)
    for (place, gradient), called in zip_longest(step.evaluated, places_called, fillvalue="w + e"):
        downhill = -np.array(gradient)
        arrow = 0.4 * half * downhill / (np.linalg.norm(downhill) + 1e-12)
        _arrow(axes, np.array(place), np.array(place) + arrow, BLUE, 1.0)
        if np.linalg.norm(np.array(place) - w) > 1e-6:
            axes.plot(*zip(step.before, place, strict=True), "--", color=GREY, linewidth=1.2)
            axes.plot(*place, "s", color=GREY, markersize=4)
            axes.annotate(called, place, (4, 4), textcoords="offset points", color=GREY, fontsize=8)
    _arrow(axes, w, np.array(step.after), ORANGE, 2.0)
    axes.plot(*w, "o", color=GREY, markersize=5)
    axes.annotate("w", w, (-10, 4), textcoords="offset points", color=GREY, fontsize=8)
    if average is not None:
        axes.plot(*average, "D", color=BLUE, markersize=4)
        axes.annotate("a", average, (5, -9), textcoords="offset points", color=BLUE, fontsize=8)
    axes.set(xlim=(middle[0] - wide, middle[0] + wide), ylim=(middle[1] - half, middle[1] + half))


def _contours(axes: Any, xs: tuple[float, float], ys: tuple[float, float], levels: int) -> None:
    x, y = np.meshgrid(np.linspace(*xs, 45), np.linspace(*ys, 35))
    axes.contour(x, y, landscape(x, y), levels=levels, colors=GREY, linewidths=0.5, alpha=0.6)


def _line(axes: Any, places: list[tuple[float, ...]], color: str, label: str) -> None:
    axes.plot(*zip(*places, strict=True), "-", color=color, linewidth=1.4, label=label)
    axes.plot(*places[-1], ".", color=color, markersize=8)


def _arrow(axes: Any, begin: Any, end: Any, color: str, width: float) -> None:
    axes.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0})


def main() -> None:
    """Draw the methods named on the command line, or all of them."""
    registry.load_builtins()
    for name in sys.argv[1:] or SETTINGS:
        file = draw(name)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
