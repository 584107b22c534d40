"""Convert PyTorch files of SpecCLIP to specjax and back, without torch and without running code from them."""

from checkpoints_convert.convert import convert
from checkpoints_convert.torch_file import TorchFile, open_torch_file

# Exporting is in `checkpoints_convert.export`, which is also a command and therefore not imported here.
__all__ = ["TorchFile", "convert", "open_torch_file"]
