"""Resampling of NumPy arrays on regular grids, the same to the bit however the output is cut."""

from microtome.ops.resampling.axis import AxisGrid, Method
from microtome.ops.resampling.kernel import resample

__all__ = ["AxisGrid", "Method", "resample"]
