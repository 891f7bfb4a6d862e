from __future__ import annotations

from torch import nn

from .helpers import DIGITS, build, of_type


def test_an_mlp_has_depth_hidden_layers_of_width() -> None:
    linear = of_type(build("mlp", DIGITS, width=8, depth=3), nn.Linear)
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(64, 8), (8, 8), (8, 8), (8, 10)]


def test_an_mlp_drops_out_only_if_asked() -> None:
    assert of_type(build("mlp", DIGITS), nn.Dropout) == []
    dropouts = of_type(build("mlp", DIGITS, depth=2, dropout=0.25), nn.Dropout)
    assert [layer.p for layer in dropouts] == [0.25, 0.25]
