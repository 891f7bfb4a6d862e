"""What optax's SAM does on the problem of test_parity.py, in double precision: python optax_runs.py IN.npz OUT.npz

A process of its own, since jax brings threads that forks of the tests' process would warn about.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

BASES: dict[str, Any] = {
    "sgd": optax.sgd(0.1),
    "momentum, weight decay": optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
}


def loss(weights: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ weights["0.weight"].T + weights["0.bias"])
    return ((hidden @ weights["2.weight"].T + weights["2.bias"] - y) ** 2).mean()


def trajectory(base: Any, weights: Any, xs: Any, ys: Any, rho: float, *, opaque: bool) -> Any:
    """All weights after the last step, flat, in the order of their names."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    optimizer = optax.contrib.sam(base, ascent, sync_period=2, opaque_mode=opaque)

    @jax.jit
    def step(weights: Any, state: Any, x: Any, y: Any) -> Any:
        for _ in range(1 if opaque else 2):  # else each pass is a call of its own
            updates, state = optimizer.update(
                jax.grad(loss)(weights, x, y), state, weights, grad_fn=jax.grad(lambda w, _: loss(w, x, y))
            )
            weights = optax.apply_updates(weights, updates)
        return weights, state

    state = optimizer.init(weights)
    for x, y in zip(xs, ys, strict=True):
        weights, state = step(weights, state, x, y)
    return np.concatenate([np.asarray(weights[name]).reshape(-1) for name in sorted(weights)])


def main(given: str, found: str) -> None:
    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    arrays = dict(np.load(given))
    xs, ys, rho = arrays.pop("xs"), arrays.pop("ys"), float(arrays.pop("rho"))
    weights = {name: jnp.asarray(value) for name, value in arrays.items()}
    runs = {name: trajectory(base, weights, xs, ys, rho, opaque=False) for name, base in BASES.items()}
    runs["adamw, opaque"] = trajectory(BASES["adamw"], weights, xs, ys, rho, opaque=True)
    at_a_minimum = {name: 0 * value for name, value in weights.items()}
    runs["zero gradient"] = trajectory(BASES["sgd"], at_a_minimum, xs[:1], 0 * ys[:1], rho, opaque=False)
    np.savez(found, **runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
