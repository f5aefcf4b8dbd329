"""Stains as functions of arrays: optical density, deconvolution, and normalization by three published methods."""

from microtome.ops.stain.deconvolution import STAINS, Deconvolution, compose, deconvolve, stain_vectors
from microtome.ops.stain.density import optical_density, rgb_of_density
from microtome.ops.stain.fits import StainFit
from microtome.ops.stain.macenko import Macenko
from microtome.ops.stain.normalization import REINHARD_TARGET, STAIN_TARGET, Normalization, normalize
from microtome.ops.stain.reinhard import Reinhard
from microtome.ops.stain.vahadane import Vahadane

__all__ = [
    "REINHARD_TARGET",
    "STAINS",
    "STAIN_TARGET",
    "Deconvolution",
    "Macenko",
    "Normalization",
    "Reinhard",
    "StainFit",
    "Vahadane",
    "compose",
    "deconvolve",
    "normalize",
    "optical_density",
    "rgb_of_density",
    "stain_vectors",
]
