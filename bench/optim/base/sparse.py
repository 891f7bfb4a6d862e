"""Parameters with sparse gradients: embeddings of which a batch touches a few rows."""

from collections.abc import Sequence

from torch import Tensor, nn


def is_sparse(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse


def with_sparse_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters that have a sparse gradient."""
    return [p for p in parameters if (gradient := p.grad) is not None and gradient.is_sparse]


def coalesced(parameter: Tensor) -> Tensor:
    """Coalesce a parameter's sparse gradient, so that each entry occurs once, and return the gradient."""
    assert parameter.grad is not None
    gradient = parameter.grad.coalesce()
    parameter.grad = gradient
    return gradient


def whole(parameter: Tensor) -> Tensor:
    """Return the parameter that the rows belong to (see `Rows`), or the given parameter itself."""
    table: Tensor = getattr(parameter, "rows_of", parameter)
    return table


class Rows:
    """The entries of a parameter that its sparse gradient (an embedding's) contains; SAM moves only these.

    Attributes:
        copy: they, with the stored numbers as gradient, to go through a step as any dense parameter.
    """

    def __init__(self, table: Tensor) -> None:
        gradient = coalesced(table)
        self.table, self.where = table, tuple(gradient.indices())
        # A dense parameter, so that norms, directions and `WeightSwap` need no case for sparse ones.
        self.copy = nn.Parameter(table[self.where])
        self.copy.grad = gradient.values()
        # For `whole`: methods that know their parameters by identity know the table, not this copy.
        self.copy.rows_of = table  # type: ignore[attr-defined]

    def put_back(self) -> None:
        # `coalesced` has left each index once, so no entry is written twice.
        self.table.index_put_(self.where, self.copy)
