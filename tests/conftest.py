"""Eight simulated devices, Keras on JAX, and strict promotion over the whole suite."""

import itertools
import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# A batched singular value decomposition waits on a thread of XLA's pool for others of the same pool. The pool has as
# many threads as there are devices, so eight devices at once wait for ever; NPROC makes the pool larger.
os.environ["NPROC"] = "32"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "agg")

import chex
import jax
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "standard_promotion: runs code of other libraries that mixes dtypes or ranks")


def pytest_collection_modifyitems(items):
    """The tests of one row of a file run one after the other, so that what one of them compiles serves the next."""
    first = {}

    def place(numbered):
        number, item = numbered
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if case is None:
            return number
        return first.setdefault((item.path, str(getattr(case, "variant", case))), number)

    items[:] = [item for _, item in sorted(enumerate(items), key=place)]


@pytest.fixture(autouse=True)
def strict_promotion(request):
    if request.node.get_closest_marker("standard_promotion"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def fresh_trace_counter():
    """Traces are counted by the name of a function, so each test begins at 0."""
    chex.clear_trace_counter()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """JAX keeps all programs that it compiled, which would take some 10 GiB for each worker at the end of the suite."""
    yield
    if next(_tests) % 100 == 0:
        jax.clear_caches()
