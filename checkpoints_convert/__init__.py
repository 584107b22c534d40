"""PyTorch files of SpecCLIP in and out of specjax, without torch and without running anything from a file."""

from checkpoints_convert.convert import convert
from checkpoints_convert.torch_file import TorchFile, open_torch_file

# The way back is `checkpoints_convert.export`, which is a command too and therefore not imported here.
__all__ = ["TorchFile", "convert", "open_torch_file"]
