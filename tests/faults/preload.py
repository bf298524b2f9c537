"""What a training imports, gathered so that a process can be forked from one that has it all."""

import sklearn.datasets  # noqa: F401
import torch
import wandb  # noqa: F401

import datamodules  # noqa: F401
import main  # noqa: F401
import vix.training.cli  # noqa: F401

torch.set_num_threads(1)
