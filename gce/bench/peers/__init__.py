"""Other packages doing the same work: a file for each, which imports it when it is to work."""

from __future__ import annotations

from gce.bench.contender import Contender
from gce.bench.peers import with_jax, with_numba, with_numpy, with_onnxruntime, with_torch

__all__ = ["OPERATOR", "PACKAGES", "PEERS"]

OPERATOR = with_onnxruntime.OPERATOR  # gce's own, in another's runtime

PEERS: dict[str, Contender] = {
    peer.name: peer
    for module in (with_numpy, with_numba, with_torch, with_jax, with_onnxruntime)
    for peer in module.PEERS
}
PACKAGES = sorted({peer.package for peer in PEERS.values() if peer.package is not None})
