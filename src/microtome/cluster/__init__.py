"""Dask clusters: settings of the workers, and how much all of them together may ask of a server.

What was opened works on clusters without this module: tasks carry how a slide is opened, and workers open it.
"""

from microtome.cluster.configuring import configure

__all__ = ["configure"]
