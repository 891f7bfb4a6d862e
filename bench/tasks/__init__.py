"""The tasks: what is learned, from which data, and how it is scored. One file per family."""

from bench.tasks import arrays as arrays
from bench.tasks import cifar as cifar
from bench.tasks import csv_table as csv_table
from bench.tasks import digits as digits
from bench.tasks import fashion_mnist as fashion_mnist
from bench.tasks import glue as glue
from bench.tasks import hf_dataset as hf_dataset
from bench.tasks import image_folder as image_folder
from bench.tasks import mnist1d as mnist1d
from bench.tasks import text_lm as text_lm
from bench.tasks import torchvision_images as torchvision_images
