"""One table of layers: how the kernel of each one lies, and which axes to write for it.

A row has a real layer. `tests/test_layouts.py` asks the layer itself what its units are, and holds the axes of the row
to that. `examples/guides/layouts.md` shows the table.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from guides import table

Axes = int | tuple[int, ...]

# The sizes of the axes that shapes name. The axes of one kernel differ in size, so that none is taken for another.
SIZES = {
    "in": 4,
    "out": 8,
    "groups": 2,
    "depth": 2,
    "height": 3,
    "width": 5,
    "heads": 2,
    "kv_heads": 5,
    "head_dim": 3,
    "layers": 3,
    "rank": 2,
    "tokens": 7,
    "hidden": 5,
}
IN, OUT, HEADS, HEAD_DIM, LAYERS, RANK, TOKENS = (
    SIZES[name] for name in ("in", "out", "heads", "head_dim", "layers", "rank", "tokens")
)
WINDOW = SIZES["height"], SIZES["width"]


class Layer(NamedTuple):
    """A layer with random weights.

    Attributes:
      tree: its parameters, as rules take them.
      inputs: an input.
      outputs: the function from parameters and an input to the outputs of the kernel in question.
    """

    tree: Any
    inputs: jax.Array
    outputs: Callable[[Any, jax.Array], jax.Array]


class Row(NamedTuple):
    """A kernel of a layer.

    Attributes:
      library: the table that it belongs to.
      layer: its name in the table.
      make: returns the layer.
      pattern: a pattern that meets this kernel.
      shape: the names or sizes of its axes.
      out_axis, batch_axis: the axes to write for `OrthogonalRegularizer(mode="columns")`. `out_axis` is None for what
        is no matrix.
      group_axis: the axes to write for `GroupLasso`.
      group: what one group is.
      group_batch: the `batch_axis` to write for `GroupLasso`.
      units: the axes of the outputs that count units.
      removed: the axes of the outputs that count groups, where they are others, or of the inputs.
      of_inputs: whether a group belongs to a part of the inputs.
      gates: how many units lead to one feature of the outputs.
      shares_inputs: whether all units of a matrix see the same inputs.
    """

    library: str
    layer: str
    make: Callable[[], Layer]
    pattern: str
    shape: tuple[str, ...]
    out_axis: Axes | None = -1
    batch_axis: Axes = ()
    group_axis: Axes = -1
    group: str = "a unit"
    group_batch: Axes = ()
    units: tuple[int, ...] = (-1,)
    removed: tuple[int, ...] | None = None
    of_inputs: bool = False
    gates: int = 1
    shares_inputs: bool = True

    def __repr__(self) -> str:
        return f"{self.library}, {self.layer}, {self.pattern}, {self.group}"


def numbers(shape: tuple[int, ...]) -> jax.Array:
    """Returns random numbers, of which none is near 0."""
    rng = np.random.default_rng(list(shape))
    return jnp.asarray(rng.uniform(0.2, 0.6, shape) * rng.choice([-1, 1], shape), jnp.float32)


def filled(shapes: Any) -> Any:
    """Returns a tree with random numbers in place of shapes."""
    return jax.tree.map(lambda leaf: numbers(leaf.shape) if hasattr(leaf, "shape") else leaf, shapes)


def vectors() -> jax.Array:
    return numbers((5, IN))


def stacked_vectors() -> jax.Array:
    return numbers((LAYERS, 5, IN))


def words() -> jax.Array:
    return numbers((1, 5, IN))


def images(channels: int = IN) -> jax.Array:
    return numbers((1, 4, 5, channels))


# Flax linen.


class LinenModel(nn.Module):
    """A model with one layer, which linen names."""

    make: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, *inputs: Any) -> Any:
        return self.make()(*inputs)


def linen(make: Callable[[], nn.Module], inputs: jax.Array, *more: Any, inside: str = "") -> Layer:
    """A layer of linen. The outputs are those of a module inside of it, where one is named."""
    module = LinenModel(make)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), inputs, *more))
    variables = jax.tree.map(jnp.abs, filled(shapes))  # because variances are positive

    def outputs(params: Any, inputs: jax.Array) -> jax.Array:
        given = variables | {"params": params}
        if not inside:
            return module.apply(given, inputs, *more)
        captured = module.apply(
            given, inputs, *more, capture_intermediates=lambda m, _: m.name == inside, mutable=["intermediates"]
        )[1]["intermediates"]
        (layer,) = captured.values()
        return layer[inside]["__call__"][0]

    return Layer(variables["params"], inputs, outputs)


class LinenCell(nn.Module):
    """One step of a recurrent cell, from a carry that is not 0."""

    make: Callable[[], Any]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        cell = self.make()
        carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), inputs.shape))
        return cell(filled(carry), inputs)[1]


def linen_cell(make: Callable[[], Any], inputs: jax.Array | None = None) -> Layer:
    return linen(lambda: LinenCell(make), vectors() if inputs is None else inputs)


class LinenScanned(nn.Module):
    """One layer of a stack. Each layer has inputs and outputs of its own."""

    layer: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, carry: None, inputs: jax.Array) -> tuple[None, jax.Array]:
        return carry, self.layer()(inputs)


def linen_stack(layer: Callable[[], nn.Module]) -> Layer:
    """Layers of linen stacked by `nn.scan`."""
    stack = nn.scan(LinenScanned, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
    return linen(lambda: LinenStack(stack, layer), stacked_vectors())


class LinenStack(nn.Module):
    stack: Any
    layer: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.stack(self.layer)(None, inputs)[1]


def linen_vmapped() -> Layer:
    mapped = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
    return linen(lambda: mapped(OUT), stacked_vectors())


def linen_attention(inside: str = "") -> Layer:
    return linen(
        lambda: nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=HEADS * HEAD_DIM, out_features=OUT),
        words(),
        inside=inside,
    )


def linen_heads() -> Layer:
    """Attention as a function of the biases of its values, by which heads are told apart."""
    tree, inputs, outputs = linen_attention()
    ((name, attention),) = tree.items()
    value = attention["value"]

    def of_biases(tree: Any, bias: jax.Array) -> jax.Array:
        return outputs({name: tree[name] | {"value": value | {"bias": bias}}}, inputs)

    return Layer(tree, value["bias"], of_biases)


# Flax NNX.


def nnx_module(make: Callable[[nnx.Rngs], nnx.Module], inputs: jax.Array, call: Any = lambda m, x: m(x)) -> Layer:
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    pure, rest = filled(nnx.to_pure_dict(params)), jax.tree.map(jnp.abs, filled(rest))

    def outputs(tree: Any, inputs: jax.Array) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, tree)
        return call(nnx.merge(graph, state, rest), inputs)

    return Layer(pure, inputs, outputs)


def nnx_step(cell: nnx.Module, inputs: jax.Array) -> jax.Array:
    carry = jax.eval_shape(lambda: cell.initialize_carry(inputs.shape, nnx.Rngs(0)))
    return cell(filled(carry), inputs)[1]


def nnx_cell(make: Callable[..., nnx.Module]) -> Layer:
    return nnx_module(lambda rngs: make(IN, OUT, rngs=rngs), vectors(), nnx_step)


def nnx_attention(inside: str = "") -> Layer:
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.MultiHeadAttention(
            num_heads=HEADS,
            in_features=IN,
            qkv_features=HEADS * HEAD_DIM,
            out_features=OUT,
            decode=False,
            rngs=rngs,
        )

    return nnx_module(make, words(), lambda m, x: getattr(m, inside)(x) if inside else m(x))


def nnx_stack() -> Layer:
    """Layers of NNX that `nnx.vmap` makes, and `nnx.scan` takes."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.vmap(lambda rngs: nnx.Linear(IN, OUT, rngs=rngs))(rngs.split(LAYERS))

    def call(stack: nnx.Module, inputs: jax.Array) -> jax.Array:
        return nnx.scan(lambda layer, x: layer(x), in_axes=(0, 0), out_axes=0)(stack, inputs)

    return nnx_module(make, stacked_vectors(), call)


def lora_a() -> Layer:
    """The first factor, seen through a second one that keeps the components apart."""
    tree, inputs, outputs = nnx_module(lambda rngs: nnx.LoRA(IN, RANK, RANK, rngs=rngs), vectors())
    return Layer(tree | {"lora_b": jnp.eye(RANK)}, inputs, outputs)


def lora_b() -> Layer:
    """The second factor, seen through a first one that keeps the components apart."""
    tree, _, outputs = nnx_module(lambda rngs: nnx.LoRA(RANK, RANK, OUT, rngs=rngs), numbers((5, RANK)))
    return Layer(tree | {"lora_a": jnp.eye(RANK)}, numbers((5, RANK)), outputs)


# Equinox.


def equinox(make: Callable[[Any], Any], inputs: jax.Array, call: Any = lambda m, x: jax.vmap(m)(x)) -> Layer:
    return Layer(filled(eqx.filter_eval_shape(make, jax.random.key(0))), inputs, call)


def equinox_step(cell: Any, inputs: jax.Array) -> jax.Array:
    hidden = numbers((OUT,))
    if isinstance(cell, eqx.nn.LSTMCell):
        return jax.vmap(lambda x: cell(x, (hidden, hidden))[0])(inputs)
    return jax.vmap(lambda x: cell(x, hidden))(inputs)


def equinox_attention(call: Any) -> Layer:
    return equinox(
        lambda key: eqx.nn.MultiheadAttention(HEADS, IN, qk_size=HEAD_DIM, vo_size=HEAD_DIM, output_size=OUT, key=key),
        words()[0],
        call,
    )


def equinox_images() -> jax.Array:
    return jnp.moveaxis(images(), -1, 1)


def equinox_stack() -> Layer:
    def make(key: jax.Array) -> Any:
        return eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, OUT, key=key))(jax.random.split(key, LAYERS))

    return equinox(make, stacked_vectors(), eqx.filter_vmap(lambda layer, x: jax.vmap(layer)(x)))


# Haiku.


def haiku(function: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> Layer:
    transformed = hk.transform(function)
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), inputs)
    return Layer(filled(shapes), inputs, lambda params, inputs: transformed.apply(params, None, inputs))


def haiku_attention(inside: str = "") -> Layer:
    def function(inputs: jax.Array) -> jax.Array:
        made = hk.MultiHeadAttention(HEADS, HEAD_DIM, model_size=OUT, w_init=hk.initializers.Constant(0.0))
        seen = []

        def see(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            if (context.module.name, context.method_name) == (inside, "__call__"):
                seen.append(result)
            return result

        with hk.intercept_methods(see):
            result = made(inputs, inputs, inputs)
        return seen[0] if inside else result

    return haiku(function, words())


def haiku_gru() -> Layer:
    """A step whose state goes through a kernel that keeps the features apart, because a reset gate stands before it."""
    tree, inputs, outputs = haiku(lambda x: hk.GRU(OUT)(x, numbers((5, OUT)))[0], vectors())
    return Layer({"gru": tree["gru"] | {"w_h": jnp.tile(jnp.eye(OUT), 3)}}, inputs, outputs)


def haiku_stack(inputs: jax.Array) -> jax.Array:
    def layer(carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry, hk.Linear(OUT)(inputs)

    return hk.experimental.layer_stack(LAYERS, with_per_layer_inputs=True)(layer)(jnp.zeros(()), inputs)[1]


# Gemma and other models that write their kernels as einsums.


class Einsum(nn.Module):
    """A kernel under an equation, as Gemma has it."""

    shape: tuple[int, ...]
    equation: str
    kernel: str = "w"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return jnp.einsum(self.equation, inputs, self.param(self.kernel, nn.initializers.normal(), self.shape))


def einsum(path: str, equation: str, shape: tuple[str, ...], *inputs: str) -> Callable[[], Layer]:
    module, kernel = path.split("/")
    return lambda: linen(lambda: Einsum(sizes(shape), equation, kernel, name=module), numbers(sizes(inputs)))


def sizes(shape: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the sizes of axes that are named, such as "in", "3 * out" or "3"."""
    return tuple(eval(re.sub(r"[a-z_]+", lambda name: str(SIZES[name[0]]), size)) for size in shape)


# The table.

HEADS_TOGETHER = {"out_axis": (1, 2), "group_axis": (1, 2), "group": "a dimension of a head", "units": (-2, -1)}
HEAD_BY_HEAD = {"batch_axis": 1, "group_axis": 1, "group": "a head", "units": (-2, -1), "removed": (-2,)}
SCALE = {"out_axis": None, "group": "a channel"}
STACKED = {"batch_axis": 0, "group_batch": 0, "units": (0, -1)}
TOKEN = {"out_axis": 0, "group_axis": 0, "group": "a token", "units": (0,)}
FILTER = {"group": "a filter"}
FIRST = {"out_axis": 0, "group_axis": 0}


def a_gate(count: int, **options: Any) -> dict[str, Any]:
    return {"gates": count, "group": "a unit of one gate", **options}


def of_inputs(group_axis: Axes, group: str, *removed: int) -> dict[str, Any]:
    return {"group_axis": group_axis, "group": group, "removed": removed, "of_inputs": True}


# Rows with one layer have one function that makes it, so that it is compiled once.
def _dense() -> Layer:
    return linen(lambda: nn.Dense(OUT), vectors())


def _conv() -> Layer:
    return linen(lambda: nn.Conv(OUT, WINDOW), images())


_linen_key, _nnx_key = functools.partial(linen_attention, "key"), functools.partial(nnx_attention, "key")
_linen = functools.partial(Row, "Flax linen")
LINEN = (
    _linen("Dense", _dense, r"Dense_\d+/kernel$", ("in", "out")),
    _linen(
        "Dense",
        _dense,
        r"Dense_\d+/kernel$",
        ("in", "out"),
        **of_inputs(0, "an input", -1),
    ),
    _linen(
        "DenseGeneral((heads, head_dim))",
        lambda: linen(lambda: nn.DenseGeneral((HEADS, HEAD_DIM)), vectors()),
        r"DenseGeneral_\d+/kernel$",
        ("in", "heads", "head_dim"),
        out_axis=(1, 2),
        group_axis=(1, 2),
        units=(-2, -1),
    ),
    _linen(
        "DenseGeneral(out, axis=(-2, -1))",
        lambda: linen(lambda: nn.DenseGeneral(OUT, axis=(-2, -1)), numbers((2, HEADS, HEAD_DIM))),
        r"DenseGeneral_\d+/kernel$",
        ("heads", "head_dim", "out"),
    ),
    _linen(
        "DenseGeneral(out, batch_dims=(0,))",
        lambda: linen(lambda: nn.DenseGeneral(OUT, batch_dims=(0,)), stacked_vectors()),
        r"DenseGeneral_\d+/kernel$",
        ("layers", "in", "out"),
        **STACKED,
    ),
    _linen(
        "Conv, one dimension",
        lambda: linen(lambda: nn.Conv(OUT, WINDOW[:1]), words()),
        r"Conv_\d+/kernel$",
        ("height", "in", "out"),
        **FILTER,
    ),
    _linen(
        "Conv, two dimensions",
        _conv,
        r"Conv_\d+/kernel$",
        ("height", "width", "in", "out"),
        **FILTER,
    ),
    _linen(
        "Conv, two dimensions",
        _conv,
        r"Conv_\d+/kernel$",
        ("height", "width", "in", "out"),
        **of_inputs(-2, "an input channel", -1),
    ),
    _linen(
        "Conv, three dimensions",
        lambda: linen(lambda: nn.Conv(OUT, (2, *WINDOW)), numbers((1, 2, 3, 4, IN))),
        r"Conv_\d+/kernel$",
        ("depth", "height", "width", "in", "out"),
        **FILTER,
    ),
    _linen(
        "Conv(feature_group_count=groups)",
        lambda: linen(lambda: nn.Conv(OUT, WINDOW, feature_group_count=SIZES["groups"]), images()),
        r"Conv_\d+/kernel$",
        ("height", "width", "in // groups", "out"),
        shares_inputs=False,
        **FILTER,
    ),
    _linen(
        "Conv(feature_group_count=in)",
        lambda: linen(lambda: nn.Conv(IN, WINDOW, feature_group_count=IN), images()),
        r"Conv_\d+/kernel$",
        ("height", "width", "1", "in"),
        shares_inputs=False,
        **FILTER,
    ),
    _linen(
        "ConvTranspose",
        lambda: linen(lambda: nn.ConvTranspose(OUT, WINDOW), images()),
        r"ConvTranspose_\d+/kernel$",
        ("height", "width", "in", "out"),
        **FILTER,
    ),
    _linen(
        "ConvTranspose(transpose_kernel=True)",
        lambda: linen(lambda: nn.ConvTranspose(OUT, WINDOW, transpose_kernel=True), images()),
        r"ConvTranspose_\d+/kernel$",
        ("height", "width", "out", "in"),
        out_axis=-2,
        group_axis=-2,
        **FILTER,
    ),
    _linen(
        "ConvLocal",
        lambda: linen(lambda: nn.ConvLocal(OUT, (2, 2)), numbers((1, 3, 5, 2))),
        r"ConvLocal_\d+/kernel$",
        ("height", "width", "2 * 2 * 2", "out"),
        batch_axis=(0, 1),
        group="a filter, in all places",
        units=(-3, -2, -1),
        removed=(-1,),
    ),
    _linen(
        "Embed",
        lambda: linen(lambda: nn.Embed(TOKENS, OUT), jnp.arange(TOKENS)),
        r"Embed_\d+/embedding$",
        ("tokens", "out"),
        **TOKEN,
    ),
    _linen(
        'Einsum((in, heads, head_dim), "bi,ihd->bhd")',
        lambda: linen(lambda: nn.Einsum((IN, HEADS, HEAD_DIM), "bi,ihd->bhd"), vectors()),
        r"Einsum_\d+/kernel$",
        ("in", "heads", "head_dim"),
        out_axis=(1, 2),
        group_axis=(1, 2),
        units=(-2, -1),
    ),
    *(
        _linen(
            f"MultiHeadDotProductAttention, {words_of}",
            _linen_key,
            r"(query|key|value)/kernel$",
            ("in", "heads", "head_dim"),
            **options,
        )
        for words_of, options in (("heads together", HEADS_TOGETHER), ("head by head", HEAD_BY_HEAD))
    ),
    _linen(
        "MultiHeadDotProductAttention",
        linen_attention,
        r"out/kernel$",
        ("heads", "head_dim", "out"),
    ),
    _linen(
        "MultiHeadDotProductAttention",
        linen_heads,
        r"out/kernel$",
        ("heads", "head_dim", "out"),
        **of_inputs(0, "a head", 0),
    ),
    _linen(
        "LSTMCell, OptimizedLSTMCell",
        lambda: linen_cell(lambda: nn.OptimizedLSTMCell(OUT)),
        r"i[ifgo]/kernel$",
        ("in", "out"),
        **a_gate(1),
    ),
    _linen(
        "LSTMCell, OptimizedLSTMCell",
        lambda: linen_cell(lambda: nn.LSTMCell(OUT)),
        r"h[ifgo]/kernel$",
        ("out", "out"),
        **a_gate(1),
    ),
    _linen(
        "GRUCell",
        lambda: linen_cell(lambda: nn.GRUCell(OUT)),
        r"i[rzn]/kernel$",
        ("in", "out"),
        **a_gate(1),
    ),
    _linen(
        "GRUCell",
        lambda: linen_cell(lambda: nn.GRUCell(OUT)),
        r"h[rzn]/kernel$",
        ("out", "out"),
        **a_gate(1),
    ),
    _linen(
        "SimpleCell",
        lambda: linen_cell(lambda: nn.SimpleCell(OUT)),
        r"SimpleCell_\d+/i/kernel$",
        ("in", "out"),
    ),
    _linen(
        "ConvLSTMCell",
        lambda: linen_cell(lambda: nn.ConvLSTMCell(OUT, WINDOW), images()),
        r"ih/kernel$",
        ("height", "width", "in", "4 * out"),
        gates=4,
        group="a filter of one gate",
    ),
    *(
        _linen(name, lambda make=make: linen(make, vectors()), rf"{name}_\d+/scale$", ("in",), **SCALE)
        for name, make in {
            "BatchNorm": lambda: nn.BatchNorm(use_running_average=True),
            "LayerNorm": nn.LayerNorm,
            "GroupNorm": lambda: nn.GroupNorm(2),
            "RMSNorm": nn.RMSNorm,
        }.items()
    ),
    _linen(
        "WeightNorm(Dense)",
        lambda: linen(lambda: nn.WeightNorm(nn.Dense(OUT)), vectors()),
        r"WeightNorm_\d+/.*/scale$",
        ("out",),
        **SCALE | {"group": "a unit"},
    ),
    _linen(
        "nn.scan of Dense",
        lambda: linen_stack(lambda: nn.Dense(OUT)),
        r"Scan.*/Dense_\d+/kernel$",
        ("layers", "in", "out"),
        **STACKED,
    ),
    _linen(
        "nn.scan of DenseGeneral((heads, head_dim))",
        lambda: linen_stack(lambda: nn.DenseGeneral((HEADS, HEAD_DIM))),
        r"Scan.*/DenseGeneral_\d+/kernel$",
        ("layers", "in", "heads", "head_dim"),
        out_axis=(2, 3),
        batch_axis=0,
        group_axis=(2, 3),
        group_batch=0,
        units=(0, -2, -1),
    ),
    _linen(
        "nn.scan of LayerNorm",
        lambda: linen_stack(lambda: nn.LayerNorm()),
        r"Scan.*/LayerNorm_\d+/scale$",
        ("layers", "in"),
        group_batch=0,
        units=(0, -1),
        **SCALE,
    ),
    _linen("nn.vmap of Dense", linen_vmapped, r"VmapDense_\d+/kernel$", ("layers", "in", "out"), **STACKED),
)

_nnx = functools.partial(Row, "Flax NNX")
NNX = (
    _nnx("Linear", lambda: nnx_module(lambda r: nnx.Linear(IN, OUT, rngs=r), vectors()), r"kernel$", ("in", "out")),
    _nnx(
        "LinearGeneral(in, (heads, head_dim))",
        lambda: nnx_module(lambda r: nnx.LinearGeneral(IN, (HEADS, HEAD_DIM), rngs=r), vectors()),
        r"kernel$",
        ("in", "heads", "head_dim"),
        out_axis=(1, 2),
        group_axis=(1, 2),
        units=(-2, -1),
    ),
    _nnx(
        "LinearGeneral((heads, head_dim), out, axis=(-2, -1))",
        lambda: nnx_module(
            lambda r: nnx.LinearGeneral((HEADS, HEAD_DIM), OUT, axis=(-2, -1), rngs=r), numbers((2, HEADS, HEAD_DIM))
        ),
        r"kernel$",
        ("heads", "head_dim", "out"),
    ),
    _nnx(
        "LinearGeneral(in, out, batch_axis={0: layers})",
        lambda: nnx_module(lambda r: nnx.LinearGeneral(IN, OUT, batch_axis={0: LAYERS}, rngs=r), stacked_vectors()),
        r"kernel$",
        ("layers", "in", "out"),
        **STACKED,
    ),
    _nnx(
        "Conv",
        lambda: nnx_module(lambda r: nnx.Conv(IN, OUT, WINDOW, rngs=r), images()),
        r"kernel$",
        ("height", "width", "in", "out"),
        **FILTER,
    ),
    _nnx(
        "ConvTranspose",
        lambda: nnx_module(lambda r: nnx.ConvTranspose(IN, OUT, WINDOW, rngs=r), images()),
        r"kernel$",
        ("height", "width", "in", "out"),
        **FILTER,
    ),
    _nnx(
        "ConvTranspose(transpose_kernel=True)",
        lambda: nnx_module(lambda r: nnx.ConvTranspose(IN, OUT, WINDOW, transpose_kernel=True, rngs=r), images()),
        r"kernel$",
        ("height", "width", "out", "in"),
        out_axis=-2,
        group_axis=-2,
        **FILTER,
    ),
    _nnx(
        "Embed",
        lambda: nnx_module(lambda r: nnx.Embed(TOKENS, OUT, rngs=r), jnp.arange(TOKENS)),
        r"embedding$",
        ("tokens", "out"),
        **TOKEN,
    ),
    _nnx(
        'Einsum("bi,ihd->bhd", (in, heads, head_dim))',
        lambda: nnx_module(lambda r: nnx.Einsum("bi,ihd->bhd", (IN, HEADS, HEAD_DIM), rngs=r), vectors()),
        r"kernel$",
        ("in", "heads", "head_dim"),
        out_axis=(1, 2),
        group_axis=(1, 2),
        units=(-2, -1),
    ),
    *(
        _nnx(
            f"MultiHeadAttention, {words_of}",
            _nnx_key,
            r"(query|key|value)/kernel$",
            ("in", "heads", "head_dim"),
            **options,
        )
        for words_of, options in (("heads together", HEADS_TOGETHER), ("head by head", HEAD_BY_HEAD))
    ),
    _nnx("MultiHeadAttention", nnx_attention, r"out/kernel$", ("heads", "head_dim", "out")),
    _nnx("LoRA", lora_a, r"lora_a$", ("in", "rank"), group="a component"),
    _nnx("LoRA", lora_b, r"lora_b$", ("rank", "out"), **of_inputs(0, "a component", -1)),
    _nnx("LSTMCell", lambda: nnx_cell(nnx.LSTMCell), r"(ii|if_|ig|io)/kernel$", ("in", "out"), **a_gate(1)),
    _nnx(
        "OptimizedLSTMCell",
        lambda: nnx_cell(nnx.OptimizedLSTMCell),
        r"dense_i/kernel$",
        ("in", "4 * out"),
        **a_gate(4),
    ),
    _nnx("GRUCell", lambda: nnx_cell(nnx.GRUCell), r"dense_h/kernel$", ("out", "3 * out"), **a_gate(3)),
    _nnx("SimpleCell", lambda: nnx_cell(nnx.SimpleCell), r"dense_i/kernel$", ("in", "out")),
    *(
        _nnx(name, lambda make=make: nnx_module(make, vectors()), r"scale$", ("in",), **SCALE)
        for name, make in {
            "BatchNorm": lambda r: nnx.BatchNorm(IN, use_running_average=True, rngs=r),
            "LayerNorm": lambda r: nnx.LayerNorm(IN, rngs=r),
            "GroupNorm": lambda r: nnx.GroupNorm(IN, 2, rngs=r),
            "RMSNorm": lambda r: nnx.RMSNorm(IN, rngs=r),
        }.items()
    ),
    _nnx("nnx.vmap or nnx.scan of Linear", nnx_stack, r"kernel$", ("layers", "in", "out"), **STACKED),
)

_equinox = functools.partial(Row, "Equinox")
EQUINOX = (
    _equinox(
        "Linear",
        lambda: equinox(lambda k: eqx.nn.Linear(IN, OUT, key=k), vectors()),
        r"weight$",
        ("out", "in"),
        **FIRST,
    ),
    _equinox(
        "Conv2d",
        lambda: equinox(lambda k: eqx.nn.Conv2d(IN, OUT, WINDOW, padding="SAME", key=k), equinox_images()),
        r"weight$",
        ("out", "in", "height", "width"),
        units=(1,),
        **FIRST | FILTER,
    ),
    _equinox(
        "Conv2d(groups=groups)",
        lambda: equinox(
            lambda k: eqx.nn.Conv2d(IN, OUT, WINDOW, padding="SAME", groups=SIZES["groups"], key=k), equinox_images()
        ),
        r"weight$",
        ("out", "in // groups", "height", "width"),
        units=(1,),
        shares_inputs=False,
        **FIRST | FILTER,
    ),
    _equinox(
        "ConvTranspose2d",
        lambda: equinox(lambda k: eqx.nn.ConvTranspose2d(IN, OUT, WINDOW, key=k), equinox_images()),
        r"weight$",
        ("out", "in", "height", "width"),
        units=(1,),
        **FIRST | FILTER,
    ),
    _equinox(
        "MultiheadAttention",
        lambda: equinox_attention(lambda m, x: jax.vmap(m.query_proj)(x)),
        r"(query|key|value)_proj/weight$",
        ("heads * head_dim", "in"),
        **FIRST | {"group": "a dimension of a head"},
    ),
    _equinox(
        "MultiheadAttention",
        lambda: equinox_attention(lambda m, x: m(x, x, x)),
        r"output_proj/weight$",
        ("out", "heads * head_dim"),
        **FIRST,
    ),
    _equinox(
        "Embedding",
        lambda: equinox(lambda k: eqx.nn.Embedding(TOKENS, OUT, key=k), jnp.arange(TOKENS)),
        r"weight$",
        ("tokens", "out"),
        **TOKEN,
    ),
    _equinox(
        "GRUCell",
        lambda: equinox(lambda k: eqx.nn.GRUCell(IN, OUT, key=k), vectors(), equinox_step),
        r"weight_(ih|hh)$",
        ("3 * out", "in"),
        **a_gate(3, **FIRST),
    ),
    _equinox(
        "LSTMCell",
        lambda: equinox(lambda k: eqx.nn.LSTMCell(IN, OUT, key=k), vectors(), equinox_step),
        r"weight_(ih|hh)$",
        ("4 * out", "in"),
        **a_gate(4, **FIRST),
    ),
    _equinox("LayerNorm", lambda: equinox(lambda k: eqx.nn.LayerNorm(IN), vectors()), r"weight$", ("in",), **SCALE),
    _equinox(
        "eqx.filter_vmap of Linear",
        equinox_stack,
        r"weight$",
        ("layers", "out", "in"),
        **STACKED | {"out_axis": 1, "group_axis": 1},
    ),
)

_haiku = functools.partial(Row, "Haiku")
HAIKU = (
    _haiku("Linear", lambda: haiku(lambda x: hk.Linear(OUT)(x), vectors()), r"linear(_\d+)?/w$", ("in", "out")),
    _haiku(
        "Conv2D",
        lambda: haiku(lambda x: hk.Conv2D(OUT, WINDOW)(x), images()),
        r"conv2_d(_\d+)?/w$",
        ("height", "width", "in", "out"),
        **FILTER,
    ),
    _haiku(
        'Conv2D(data_format="NCHW")',
        lambda: haiku(lambda x: hk.Conv2D(OUT, WINDOW, data_format="NCHW")(x), equinox_images()),
        r"conv2_d(_\d+)?/w$",
        ("height", "width", "in", "out"),
        units=(1,),
        **FILTER,
    ),
    _haiku(
        "Conv2DTranspose",
        lambda: haiku(lambda x: hk.Conv2DTranspose(OUT, WINDOW)(x), images()),
        r"conv2_d_transpose(_\d+)?/w$",
        ("height", "width", "out", "in"),
        out_axis=-2,
        group_axis=-2,
        **FILTER,
    ),
    _haiku(
        "MultiHeadAttention",
        lambda: haiku_attention("key"),
        r"(query|key|value)/w$",
        ("in", "heads * head_dim"),
        group="a dimension of a head",
    ),
    _haiku("MultiHeadAttention", haiku_attention, r"attention.*/linear/w$", ("heads * head_dim", "out")),
    _haiku(
        "Embed",
        lambda: haiku(lambda x: hk.Embed(TOKENS, OUT)(x), jnp.arange(TOKENS)),
        r"embed(_\d+)?/embeddings$",
        ("tokens", "out"),
        **TOKEN,
    ),
    _haiku(
        "LSTM",
        lambda: haiku(lambda x: hk.LSTM(OUT)(x, hk.LSTMState(numbers((5, OUT)), numbers((5, OUT))))[0], vectors()),
        r"lstm(_\d+)?/linear/w$",
        ("in + out", "4 * out"),
        **a_gate(4),
    ),
    _haiku(
        "GRU",
        haiku_gru,
        r"gru(_\d+)?/w_i$",
        ("in", "3 * out"),
        **a_gate(3),
    ),
    _haiku(
        "LayerNorm",
        lambda: haiku(lambda x: hk.LayerNorm(-1, True, True)(x), vectors()),
        r"layer_norm(_\d+)?/scale$",
        ("in",),
        **SCALE,
    ),
    _haiku(
        "hk.experimental.layer_stack of Linear",
        lambda: haiku(haiku_stack, stacked_vectors()),
        r"layer_stack.*/linear/w$",
        ("layers", "in", "out"),
        **STACKED,
    ),
)

_gemma = functools.partial(Row, "Gemma")
_HEADS, _KV_HEADS, _WORDS = ("heads", "in", "head_dim"), ("kv_heads", "in", "head_dim"), ("1", "5", "in")
_HEADS_OUT = ("heads", "head_dim", "out")
_GATING, _GATING_TRANSPOSED = ("2", "in", "hidden"), ("2", "hidden", "in")
_HIDDEN = {"batch_axis": 0, "group": "a hidden unit, in both parts", "units": (-2, -1), "removed": (-1,)}
_DIMENSION = "a dimension of a head"
_query = einsum("q_einsum/w", "BTD,NDH->BTNH", _HEADS, *_WORDS)
_keys_and_values = einsum("kv_einsum/w", "BSD,CKDH->CBSKH", ("2", *_KV_HEADS), *_WORDS)
_attention_output = einsum("attn_vec_einsum/w", "BTNH,NHD->BTD", _HEADS_OUT, "1", "5", "heads", "head_dim")
_output = einsum("mlp/linear", "...H,HF->...F", ("hidden", "out"), "5", "hidden")
_stacked_query = einsum("q_einsum/w", "LBTD,LNDH->LBTNH", ("layers", *_HEADS), "layers", *_WORDS)
GEMMA = (
    _gemma(
        "query, heads together",
        _query,
        r"q_einsum/w$",
        _HEADS,
        out_axis=(0, 2),
        group_axis=(0, 2),
        group=_DIMENSION,
        units=(-2, -1),
    ),
    _gemma(
        "query, head by head",
        _query,
        r"q_einsum/w$",
        _HEADS,
        batch_axis=0,
        group_axis=0,
        group="a head",
        units=(-2, -1),
        removed=(-2,),
    ),
    _gemma(
        "keys and values, heads together",
        _keys_and_values,
        r"kv_einsum/w$",
        ("2", *_KV_HEADS),
        out_axis=(1, 3),
        batch_axis=0,
        group_axis=(1, 3),
        group_batch=0,
        group=_DIMENSION,
        units=(0, -2, -1),
    ),
    _gemma(
        "keys and values, head by head",
        _keys_and_values,
        r"kv_einsum/w$",
        ("2", *_KV_HEADS),
        batch_axis=(0, 1),
        group_axis=1,
        group="a head, with its key and value",
        units=(0, -2, -1),
        removed=(-2,),
    ),
    _gemma(
        "query, key and value in one, heads together",
        einsum("qkv_einsum/w", "BTD,SNDH->SBTNH", ("3", *_HEADS), *_WORDS),
        r"qkv_einsum/w$",
        ("3", *_HEADS),
        out_axis=(1, 3),
        batch_axis=0,
        group_axis=1,
        group="a head, with its query, key and value",
        units=(0, -2, -1),
        removed=(-2,),
    ),
    _gemma(
        "attention output",
        _attention_output,
        r"attn_vec_einsum/w$",
        _HEADS_OUT,
    ),
    _gemma(
        "attention output",
        _attention_output,
        r"attn_vec_einsum/w$",
        _HEADS_OUT,
        **of_inputs(0, "a head", -2),
    ),
    _gemma(
        "gate of the feed-forward layer",
        einsum("mlp/gating_einsum", "...F,NFH->...NH", _GATING, *_WORDS),
        r"mlp/gating_einsum$",
        _GATING,
        **_HIDDEN,
    ),
    _gemma(
        "the same, transposed",
        einsum("mlp/gating_einsum", "...F,NHF->...NH", _GATING_TRANSPOSED, *_WORDS),
        r"mlp/gating_einsum$",
        _GATING_TRANSPOSED,
        out_axis=1,
        group_axis=1,
        **_HIDDEN,
    ),
    _gemma(
        "output of the feed-forward layer",
        _output,
        r"mlp/linear$",
        ("hidden", "out"),
    ),
    _gemma(
        "output of the feed-forward layer",
        _output,
        r"mlp/linear$",
        ("hidden", "out"),
        **of_inputs(0, "a hidden unit", -1),
    ),
    _gemma(
        "embedding",
        einsum("embedder/input_embedding", "BTD,VD->BTV", ("tokens", "in"), *_WORDS),
        r"embedder/input_embedding$",
        ("tokens", "in"),
        **TOKEN | {"units": (-1,)},
    ),
    _gemma(
        "query in stacked layers, heads together",
        _stacked_query,
        r"q_einsum/w$",
        ("layers", *_HEADS),
        out_axis=(1, 3),
        batch_axis=0,
        group_axis=1,
        group_batch=0,
        group="a head of a layer",
        units=(0, -2, -1),
        removed=(0, -2),
    ),
    _gemma(
        "query in stacked layers, head by head",
        _stacked_query,
        r"q_einsum/w$",
        ("layers", *_HEADS),
        batch_axis=(0, 1),
        group_axis=(1, 3),
        group_batch=0,
        group=f"{_DIMENSION} of a layer",
        units=(0, -2, -1),
    ),
)

LAYOUTS = (*LINEN, *NNX, *EQUINOX, *HAIKU, *GEMMA)


def markdown(rows: tuple[Row, ...]) -> str:
    """Returns the table of some rows, as the page shows it."""
    header = ("layer", "pattern", "shape", "`out_axis`", "`batch_axis`", "`group_axis`", "a group is")
    return table(header, map(_cells, rows))


def _cells(row: Row) -> tuple[str, ...]:
    out, batch = "no matrix", "-"
    if row.out_axis is not None:
        out = "default" if row.out_axis == -1 else f"`{row.out_axis}`"
        batch = "-" if row.batch_axis == () else f"`{row.batch_axis}`"
    if not row.shares_inputs:
        out += ", of all groups"
    group = "default" if row.group_axis == -1 else f"`{row.group_axis}`"
    if row.group_batch != ():
        group += f", `batch_axis={row.group_batch}`"
    return row.layer, f"`{row.pattern}`", f"`({', '.join(row.shape)})`", out, batch, group, row.group
