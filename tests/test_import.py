"""What `import jaxreg` brings with it, in a process of its own, where nothing else has imported anything."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
import jax, flax.linen, optax
import jax.numpy as jnp

before = set(sys.modules)
import jaxreg

new = set(sys.modules) - before
rules = jaxreg.Rules(("kernel", jaxreg.L2(0.5)))
boxed = {"dense": {"kernel": flax.linen.Partitioned(jnp.ones((2, 3)), (None, "model"))}}
penalty = float(rules(boxed))
needed = "flax.nnx" in sys.modules

from flax import nnx

layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
layer.kernel[...] = jnp.full((2, 3), 2.0)
tree = {"layer": layer, "same": layer, "dense": boxed["dense"]}
print(json.dumps({"new": sorted(new), "linen": penalty, "needed": needed, "nnx": rules.breakdown(tree)}, default=float))
"""


@pytest.fixture(scope="module")
def seen():
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_jaxreg_imports_itself_and_the_standard_library(seen):
    """JAX, Flax and optax are there before. NNX and the packages of the extras are for those who use them."""
    packages = {name.split(".")[0] for name in seen["new"]} - sys.stdlib_module_names
    assert packages == {"jaxreg"}


def test_trees_without_nnx_do_not_import_it(seen):
    assert seen["linen"] == 0.5 * 6
    assert not seen["needed"]


def test_nnx_may_be_imported_after_jaxreg(seen):
    """The modules of NNX are known as soon as there can be any, and a shared one counts once."""
    assert seen["nnx"] == {"layer/kernel": 0.5 * 6 * 4, "dense/kernel": 0.5 * 6}
