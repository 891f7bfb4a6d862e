"""The models. One file per architecture family; a factory takes the task and returns a torch module."""

from bench.models import conv1d as conv1d
from bench.models import decoders as decoders
from bench.models import efficientnet as efficientnet
from bench.models import encoders as encoders
from bench.models import lenet as lenet
from bench.models import mlp as mlp
from bench.models import pyramidnet as pyramidnet
from bench.models import resnet as resnet
from bench.models import shake_shake as shake_shake
from bench.models import timm_models as timm_models
from bench.models import vit as vit
from bench.models import wide_resnet as wide_resnet
