"""What a function of one's own costs as two-party computation. No engine is needed.

The same from a shell: python -m entropy_attn.private.cost --function=examples/price.py:relu_squared --shape=128x3072
"""

import jax

from entropy_attn.private.price import function


def relu_squared(x):
  return jax.nn.relu(x) ** 2


def priced(activation):
  return function.price(activation, [function.parse_shape("128x3072")], setting="cheap", rules={})


prices = {activation.__name__: priced(activation) for activation in (relu_squared, jax.nn.relu, jax.nn.silu)}
for name, price in prices.items():
  print(f"{name}: {price['total_bytes'] / 1e6:.0f} MB, {price['rounds']:.0f} rounds")
