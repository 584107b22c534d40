"""PyTorch files of SpecCLIP in and out of specjax, without torch and without running anything from a file."""
