"""ResNet-50, ViT-S and GPT-2 small in flax.linen, and plain forms of the orthogonal penalty, for the benchmarks.

`networks.py` and `accelerators.py` import it. As a script it does nothing.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.width, (3, 3), strides)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.width, (1, 1), strides, name="shortcut")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: tuple[int, ...]
    width: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (7, 7), (2, 2), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(self.width * 2**stage, 2 if stage > 0 and block == 0 else 1)(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))


class Block(nn.Module):
    """A layer of a transformer, with the norms before the attention and before the MLP."""

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(nn.LayerNorm()(x))
        query, key, value = jnp.split(qkv.reshape(batch, tokens, 3 * self.heads, width // self.heads), 3, axis=2)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + nn.Dense(width, name="out")(attended.reshape(x.shape))
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(y)


class ViT(nn.Module):
    layers: int
    width: int
    heads: int
    patch: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch), name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(self.layers):
            x = Block(self.heads, causal=False)(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x)[:, 0])


class GPT(nn.Module):
    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width, name="tokens")
        x = embed(tokens) + nn.Embed(self.context, self.width, name="positions")(jnp.arange(tokens.shape[1]))[None]
        for _ in range(self.layers):
            x = Block(self.heads, causal=True)(x)
        return embed.attend(nn.LayerNorm()(x))


@dataclasses.dataclass(frozen=True)
class Network:
    name: str
    model: nn.Module
    inputs: jax.ShapeDtypeStruct
    labels: jax.ShapeDtypeStruct
    classes: int
    batch: str

    def shapes(self) -> dict:
        """The shapes of the variables."""
        return jax.eval_shape(self.model.init, jax.random.key(0), self.inputs)

    def kernels(self) -> dict:
        """The shapes of the kernels, in the tree of the parameters."""
        flat = flatten_dict(self.shapes()["params"])
        return unflatten_dict({path: shape for path, shape in flat.items() if path[-1] == "kernel"})

    def loss(self, params: dict, rest: dict, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict]:
        """The cross entropy, and the new running averages of a network that has some."""
        logits, updated = self.model.apply({"params": params, **rest}, inputs, mutable=["batch_stats"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), updated


def _of_images(name: str, model: nn.Module, images: int, size: int, classes: int) -> Network:
    inputs = jax.ShapeDtypeStruct((images, size, size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((images,), jnp.int32)
    return Network(name, model, inputs, labels, classes, f"{images} images of {size} × {size}")


def _of_tokens(name: str, model: GPT, sequences: int) -> Network:
    tokens = jax.ShapeDtypeStruct((sequences, model.context), jnp.int32)
    return Network(name, model, tokens, tokens, model.vocabulary, f"{sequences} sequences of {model.context} tokens")


def networks(smoke: bool) -> dict[str, Network]:
    """The three networks at their true sizes with a usual batch, or tiny ones of the same kinds."""
    if smoke:
        return {
            "resnet": _of_images("a tiny ResNet", ResNet((1,), 8, 10), 2, 32, 10),
            "vit": _of_images("a tiny ViT", ViT(1, 16, 2, 8, 10), 2, 32, 10),
            "gpt": _of_tokens("a tiny GPT", GPT(1, 16, 2, 64, 8), 2),
        }
    return {
        "resnet": _of_images("ResNet-50", ResNet((3, 4, 6, 3), 64, 1000), 32, 224, 1000),
        "vit": _of_images("ViT-S", ViT(12, 384, 6, 16, 1000), 32, 224, 1000),
        "gpt": _of_tokens("GPT-2 small", GPT(12, 768, 12, 50257, 1024), 4),
    }


def matrix(kernel: jax.Array) -> jax.Array:
    """A Flax kernel with its units as the columns of a matrix."""
    return kernel.reshape(-1, kernel.shape[-1])


def cosines(x: jax.Array, axis: int) -> jax.Array:
    """The cosines between the vectors that lie along an axis of a matrix: 0 for its columns, 1 for its rows."""
    units = x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-7)
    return units.T @ units if axis == 0 else units @ units.T


def plain(x: jax.Array, axis: int = 0) -> jax.Array:
    """The mean |cosine| between distinct columns, or rows, to be used under autodiff.

    For the columns of most usual kernels, a TPU's compiler makes more of this than of a mask on the diagonal.
    """
    found = cosines(x, axis)
    n = len(found)
    return (jnp.sum(jnp.abs(found)) - jnp.sum(jnp.abs(jnp.diagonal(found)))) / (n * (n - 1.0))


def products(x: jax.Array) -> jax.Array:
    """The two matrix products that no dense method can do without: the Gram matrix, and the vectors times that."""
    return x @ jax.lax.dot_general(x, x, (((0,), (0,)), ((), ())))
