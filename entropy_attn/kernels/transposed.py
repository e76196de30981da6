"""A linear function with a transpose of one's own, for every transformation of JAX and derivatives of any order."""

import jax
import jax.numpy as jnp


def linear(fun, transpose, x, like):
  """fun(x), whose transpose JAX takes to be `transpose`.

  `jax.custom_vjp` has no forward mode, and `jax.custom_derivatives.linear_call` neither a batching rule nor derivatives
  by what it closes over. `jax.lax.custom_linear_solve` has all of it: y = fun(x) is the second part of the solution of
  [[1, 0], [−fun, 1]] (x, y) = (x, 0), and one with the transposed matrix has `transpose` in that place.

  Args:
    fun: linear, in plain JAX; differentiable by what it closes over.
    transpose: of fun, likewise.
    x: a list of floating arrays.
    like: arrays of the structure, shapes and dtypes of fun(x).
  """
  # The rules of the primitive want all parts to depend on what is differentiated, or none. The compiler drops this.
  none = nothing(x)
  x = _plus(x, none)
  zeros = _plus(jax.tree.map(jnp.zeros_like, like), none)

  def matvec(parts):
    x, y = parts
    of_x = fun(x)
    return _plus(x, nothing(of_x)), jax.tree.map(jnp.subtract, y, of_x)

  def solve(_, parts):
    x, y = parts
    return x, jax.tree.map(jnp.add, y, fun(x))

  def transpose_solve(_, parts):
    x, y = parts
    return jax.tree.map(jnp.add, x, transpose(y)), y

  return jax.lax.custom_linear_solve(matvec, (x, zeros), solve, transpose_solve)[1]


def nothing(tree):
  """A zero that depends on every array of a tree, until the compiler sees it."""
  return jnp.where(False, sum(jnp.sum(leaf.ravel()[:1]).astype(jnp.float32) for leaf in jax.tree.leaves(tree)), 0.0)


def _plus(tree, scalar):
  return jax.tree.map(lambda leaf: leaf + scalar.astype(leaf.dtype), tree)
