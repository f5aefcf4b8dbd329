"""DICOMwebServer: the public face of the server."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError
from microtome.testing.dicomweb.auth import Gate
from microtome.testing.dicomweb.dialects import dialect_named
from microtome.testing.dicomweb.serving import Server

if TYPE_CHECKING:
    from microtome.testing.dicomweb.services import Services

__all__ = ["DICOMwebServer"]

StrPath = str | os.PathLike[str]


class DICOMwebServer(Server):
    """A DICOMweb server over files: QIDO-RS, WADO-RS and, if asked for, STOW-RS (PS3.18).

    It shares no code with what reads slides, so errors of the one do not hide errors of the other. It answers in the
    dialects of several servers, logs what it is asked, and fails on demand.

    Parameters
    ----------
    source
        A file or folder of DICOM instances, or several.
    host, port
        Where to listen; port 0 is any free one.
    dialect
        Which server to be like: "standard", "google", "orthanc", or "minimal".
    basic
        (user, password) to ask for.
    tokens
        Accepted bearer tokens. The collection is looked at anew for each request, so tokens may come and go.
    token_lifetime
        Requests that a token is good for; it is refused from then on.
    latency
        Seconds before each answer.
    bandwidth
        Bytes per second of each connection; None for as fast as it goes.
    associated
        Whether labels and overviews, which carry names, are shown.
    stow
        Whether instances may be stored: in the first folder of the source.
    allowed_hosts
        Names under which the server may be called, besides its own address and localhost.
    root
        Path of the services; None for that of the dialect, which is /dicomWeb for all but "google".

    Attributes
    ----------
    requests
        Log of :class:`Request`, oldest first; of the last hundred thousand at least.
    connections
        TCP connections accepted.
    bytes_sent
        Bytes of all bodies.
    peak
        The most requests that were under way at a time.
    failures
        Tracebacks of errors of the server itself, which clients see as status 500.
    fault
        Asked for each request before it is answered; returns a :class:`Fault`, or None for an answer that is well.
    max_body
        The most bytes of a request.

    Raises
    ------
    SlideNotFoundError
        A source is not there.
    NotASlideError
        It is a file and no DICOM instance.
    OptionError
        Options that contradict each other.

    Examples
    --------
    >>> with DICOMwebServer("slide") as server:  # doctest: +SKIP
    ...     slide = mt.open_slide(server.series_urls()[0])
    """

    services: Services

    def __init__(
        self,
        source: StrPath | Sequence[StrPath],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        dialect: str = "standard",
        basic: tuple[str, str] | None = None,
        tokens: Collection[str] | None = None,
        token_lifetime: int | None = None,
        latency: float = 0.0,
        bandwidth: float | None = None,
        associated: bool = False,
        stow: bool = False,
        allowed_hosts: Collection[str] | None = None,
        root: str | None = None,
    ) -> None:
        from microtome.testing.dicomweb.archive import Archive
        from microtome.testing.dicomweb.services import Services

        sources = [source] if isinstance(source, str | os.PathLike) else list(source)
        spoken = dialect_named(dialect)
        path = "/" + (spoken.root if root is None else root).strip("/")
        gate = Gate(host, allowed_hosts or (), basic, tokens, token_lifetime)
        self.archive = Archive([Path(s) for s in sources], associated)
        if stow and self.archive.folder is None:
            raise OptionError("stow=True stores into the first folder of the source, which has none")
        super().__init__(
            Services(self.archive, spoken, path, stow),
            host,
            port,
            dialect=spoken,
            gate=gate,
            root=path,
            latency=latency,
            bandwidth=bandwidth,
            stores=stow,
        )

    # -- what it has

    def study_urls(self) -> list[str]:
        """One for each study."""
        studies = dict.fromkeys(i.study for i in self.archive.instances())
        return [f"{self.url}/studies/{study}" for study in studies]

    def series_urls(self) -> list[str]:
        """One for each series."""
        series = dict.fromkeys((i.study, i.series) for i in self.archive.instances())
        return [f"{self.url}/studies/{study}/series/{one}" for study, one in series]

    @property
    def page(self) -> int:
        """The most results of one search; those who want more have to ask again. 100 at first."""
        return self.services.page

    @page.setter
    def page(self, most: int) -> None:
        self.services.page = most
