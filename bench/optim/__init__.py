"""The optimizers. One algorithm a file; plain ones are torch's own, methods such as SAM are built around one."""

from bench.optim import adam as adam
from bench.optim import adamw as adamw
from bench.optim import asam as asam
from bench.optim import sam as sam
from bench.optim import sgd as sgd
