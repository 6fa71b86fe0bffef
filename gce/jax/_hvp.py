"""The Hessian's product with a vector, as a primitive that jax can transpose: it is linear.

A custom call cannot be transposed, and jax's means for one that can (`linear_call`) have no vmap.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gce.jax._calls import TARGET, Inputs, Options, attributes_of

__all__ = ["hessian_product"]


def hessian_product(options: Options, inputs: Inputs, vector: Any) -> Any:
    """`gce.hvp` of arrays of jax, in the logits' dtype and shape."""
    given = {name: array for name, array in inputs._asdict().items() if array is not None}
    attributes = attributes_of(options, inputs.logits.ndim)
    names = ",".join([*given, "vector"])
    return _product.bind(*given.values(), vector, names=names, attributes=tuple(attributes.items()))


def _compute(*arrays: Any, names: str, attributes: tuple[tuple[str, Any], ...]) -> Any:
    result = jax.ShapeDtypeStruct(arrays[-1].shape, arrays[0].dtype)
    call = jax.ffi.ffi_call(TARGET, result, vmap_method="expand_dims")
    return call(*arrays, arguments=names, results="grad", **dict(attributes))


def _jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], **parameters: Any) -> Any:
    if not all(isinstance(tangent, ad.Zero) for tangent in tangents[:-1]):
        raise NotImplementedError("gamma_cross_entropy has no third derivatives")
    found = _product.bind(*primals, **parameters)
    if isinstance(tangents[-1], ad.Zero):
        return found, jnp.zeros_like(found)
    return found, _product.bind(*primals[:-1], tangents[-1], **parameters)


def _transpose(cotangent: Any, *arrays: Any, **parameters: Any) -> list[Any]:
    """The Hessian is symmetric."""
    zeros = [None] * (len(arrays) - 1)
    if isinstance(cotangent, ad.Zero):
        return [*zeros, None]
    return [*zeros, _product.bind(*arrays[:-1], cotangent, **parameters)]


def _batch(arrays: tuple[Any, ...], axes: tuple[Any, ...], **parameters: Any) -> tuple[Any, int]:
    """Put vmap's axis first, as the library takes it, and at its full length in the vector."""
    (size,) = {
        array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None
    }
    moved = [
        array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    moved[-1] = jnp.broadcast_to(moved[-1], (size, *moved[-1].shape[1:]))
    return _product.bind(*moved, **parameters), 0


_product = Primitive("gce_hessian_product")
_product.def_impl(_compute)
_product.def_abstract_eval(lambda *avals, **_: avals[-1].update(weak_type=False))
mlir.register_lowering(_product, mlir.lower_fun(_compute, multiple_results=False))
ad.primitive_jvps[_product] = _jvp
ad.primitive_transposes[_product] = _transpose
batching.primitive_batchers[_product] = _batch
