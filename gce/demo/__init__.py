"""What γ does, shown by training: ``python -m gce demo``.

Two tasks whose training labels are partly wrong: the digits of scikit-learn, learnt by a small
network, and the words of a book, learnt by a small transformer. Each is trained by
`gce.onnx.training.Trainer` on ONNX Runtime for every γ of a grid, with and without a threshold, and
with γ annealed from 0 to 1, and tested on clean data. `gce.demo.run.run` does it all; it needs the
extra ``gamma-ce[demo]`` and onnxruntime. This package itself imports nothing beyond `DemoConfig`:
the command line shows its help without it.
"""

from gce.demo.config import DemoConfig

__all__ = ["DemoConfig"]
