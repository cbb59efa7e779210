"""The regularizers that jaxreg ships: frozen data, and one line that calls the maths."""

from jaxreg._base import Regularizer
from jaxreg._configured import BUILT_IN
from jaxreg._regularizers._elementwise import L0, L1, L1L2, L2, MCP, SCAD, Huber, LHalf, LogSum
from jaxreg._regularizers._groups import GroupLasso, LInf, SparseGroupLasso
from jaxreg._regularizers._matrices import FramePotential, Nuclear, OrthogonalRegularizer, Spectral

__all__ = [
    "L0",
    "L1",
    "L1L2",
    "L2",
    "MCP",
    "SCAD",
    "SHIPPED",
    "FramePotential",
    "GroupLasso",
    "Huber",
    "LHalf",
    "LInf",
    "LogSum",
    "Nuclear",
    "OrthogonalRegularizer",
    "SparseGroupLasso",
    "Spectral",
]

SHIPPED: tuple[type[Regularizer], ...] = (
    L1,
    L2,
    L1L2,
    OrthogonalRegularizer,
    FramePotential,
    GroupLasso,
    SparseGroupLasso,
    L0,
    LHalf,
    LInf,
    Huber,
    MCP,
    SCAD,
    LogSum,
    Nuclear,
    Spectral,
)
BUILT_IN |= {cls.__name__: cls for cls in SHIPPED}
