"""Bounds that several optimizers' hyperparameters share."""

from typing import Annotated, Literal

from pydantic import Field

# The registry reads these bounds off a factory's signature; experiment files are checked by them.
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Variant = Literal["paper", "authors"]
"""Choice between the paper's text and the authors' code, for methods in which these differ."""
