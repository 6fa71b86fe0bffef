"""A real classifier trained with this loss: ``python -m gce demo``.

The digits of scikit-learn, 40 % of whose training labels are wrong, are learnt by a small network
in plain numpy whose loss and gradient are `gce.loss_and_grad`, once for each γ and once with γ
annealed from 0 to 1. `gce.demo.run.run` does it all; it needs the extra ``gamma-ce[demo]``. This
package itself imports nothing beyond `DemoConfig`: the command line shows its help without it.
"""

from gce.demo.config import DemoConfig

__all__ = ["DemoConfig"]
