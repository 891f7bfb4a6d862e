"""The optimizers. One algorithm per file; plain ones are torch's own, methods such as SAM wrap one of them."""

# Importing a module registers its optimizer, and `load_builtins` imports this package: a new module needs a line here.
from bench.optim import adam as adam
from bench.optim import adamw as adamw
from bench.optim import ae_sam as ae_sam
from bench.optim import asam as asam
from bench.optim import ema as ema
from bench.optim import esam as esam
from bench.optim import friendly_sam as friendly_sam
from bench.optim import functional_sam as functional_sam
from bench.optim import gsam as gsam
from bench.optim import le_sam as le_sam
from bench.optim import lion as lion
from bench.optim import looksam as looksam
from bench.optim import momentum_sam as momentum_sam
from bench.optim import muon as muon
from bench.optim import nadamw as nadamw
from bench.optim import random_direction as random_direction
from bench.optim import sam as sam
from bench.optim import sampa as sampa
from bench.optim import schedule_free as schedule_free
from bench.optim import sgd as sgd
from bench.optim import soap as soap
from bench.optim import swa as swa
from bench.optim import wsam as wsam
from bench.optim import xsam as xsam
