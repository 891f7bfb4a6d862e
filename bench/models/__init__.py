"""The models. One file an architecture family; a factory takes the task and gives a torch module."""

from bench.models import mlp as mlp
from bench.models import resnet as resnet
