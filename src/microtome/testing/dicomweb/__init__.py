"""A DICOMweb server over files, for tests and demos: ours and yours.

::

    server ──> wire ────> services ──> qido, wado, stow ──> archive
    serving    HTTP,      paths        what is asked        headers,
    life, log  faults                                       frames

Nothing but the standard library is imported before a server is made.
"""

from __future__ import annotations

from microtome.testing.dicomweb.faults import Fault, FaultRule
from microtome.testing.dicomweb.message import Request
from microtome.testing.dicomweb.server import DICOMwebServer

__all__ = ["DICOMwebServer", "Fault", "FaultRule", "Request"]
