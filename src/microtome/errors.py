"""What can go wrong, as one tree of exceptions and one of warnings.

::

    MicrotomeError
    ├── OpenError                    a slide cannot be opened
    │   ├── NotASlideError           what is there is not a whole-slide image
    │   ├── SlideNotFoundError       nothing is there                 (also FileNotFoundError)
    │   ├── AmbiguousSlideError      several slides are there; choose one with ``series=``
    │   └── CorruptHeaderError       the headers contradict themselves or the file
    ├── FrameError                   one frame cannot be read
    │   ├── MissingFrameError        it should be there and is not: a cut file, a lost part
    │   ├── CorruptFrameError        its bytes do not decode to the pixels they should
    │   └── UnsupportedCodecError    no decoder for its transfer syntax or pixel format
    ├── SelectionError               indices outside the image       (also IndexError)
    │   └── LevelNotFoundError       the slide has no such level
    ├── SpacingUndefinedError        millimetres asked of a level without a spacing
    ├── SlideChangedError            the bytes changed since the slide was opened
    ├── RequestError                 a server cannot be reached, or refuses      (also OSError)
    │   ├── NotOnServerError         it does not have what was asked for         (also FileNotFoundError)
    │   ├── AuthenticationError      it wants other credentials                  (also PermissionError)
    │   └── ProtocolError            its answer is cut short, miscounted, or no such answer at all
    ├── CohortError                  slides of a cohort failed
    ├── CredentialsError             credentials that must not go where they would go
    ├── OptionError                  an argument has no meaning here  (also ValueError)
    └── MissingDependencyError       an optional package is needed    (also ImportError)

    MicrotomeWarning (UserWarning)
    ├── GeometryWarning              spacings, extents or positions disagree
    ├── FrameOrderWarning            the file does not say in which order its frames lie
    ├── AlternativesWarning          several instances claim the same pixels
    ├── IncompleteSlideWarning       parts or frames that should be there are not
    ├── SlowAccessWarning            this file allows no random access
    ├── NoProfileWarning             an image without ICC profile keeps the colours that it has
    └── TranscodedWarning            a server encodes the pixels anew, which may alter them
"""

from __future__ import annotations

__all__ = [
    "AlternativesWarning",
    "AmbiguousSlideError",
    "AuthenticationError",
    "CohortError",
    "CorruptFrameError",
    "CorruptHeaderError",
    "CredentialsError",
    "FrameError",
    "FrameOrderWarning",
    "GeometryWarning",
    "IncompleteSlideWarning",
    "LevelNotFoundError",
    "MicrotomeError",
    "MicrotomeWarning",
    "MissingDependencyError",
    "MissingFrameError",
    "NoProfileWarning",
    "NotASlideError",
    "NotOnServerError",
    "OpenError",
    "OptionError",
    "ProtocolError",
    "RequestError",
    "SelectionError",
    "SlideChangedError",
    "SlideNotFoundError",
    "SlowAccessWarning",
    "SpacingUndefinedError",
    "TranscodedWarning",
    "UnsupportedCodecError",
]


class MicrotomeError(Exception):
    """Base of every error this library raises on purpose."""


class OpenError(MicrotomeError):
    """A slide cannot be opened."""


class NotASlideError(OpenError):
    """What is there is not a whole-slide image, or holds no pixels of one."""


class SlideNotFoundError(OpenError, FileNotFoundError):
    """Nothing is there under the given URI."""


class AmbiguousSlideError(OpenError):
    """Several slides are there.

    Attributes
    ----------
    choices
        The values that ``series=`` accepts, one for each slide found.
    """

    def __init__(self, message: str, choices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.choices = choices

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.choices)


class CorruptHeaderError(OpenError):
    """The headers of a file contradict themselves, or the file they stand in."""


class FrameError(MicrotomeError):
    """One frame cannot be read."""


class MissingFrameError(FrameError):
    """A frame that should be there is not: the file is cut short, or a part of a concatenation is lost."""


class CorruptFrameError(FrameError):
    """The bytes of a frame do not decode to the pixels they should."""


class UnsupportedCodecError(FrameError):
    """There is no decoder for the transfer syntax, or for pixels of this kind under it."""


class SelectionError(MicrotomeError, IndexError):
    """A region or an index that lies outside the image."""


class LevelNotFoundError(SelectionError):
    """The slide has no level, or no associated image, of this number, name or spacing; the message lists them."""


class SpacingUndefinedError(MicrotomeError):
    """Millimetres were asked of a level whose pixel spacing is not stated."""


class SlideChangedError(MicrotomeError):
    """The bytes of a slide changed since it was opened."""


class RequestError(MicrotomeError, OSError):
    """A server cannot be reached, refuses, or fails; the message has its own words.

    Attributes
    ----------
    status
        HTTP status of its last answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        return type(self), (str(self), self.status)


class NotOnServerError(RequestError, FileNotFoundError):
    """A server does not have what was asked for."""


class AuthenticationError(RequestError, PermissionError):
    """A server wants other credentials, or grants these less than was asked for."""


class ProtocolError(RequestError):
    """An answer of a server is cut short, has parts too few or too many, or is no such answer at all."""


class CohortError(MicrotomeError):
    """Slides of a cohort failed, and they were not to be left out.

    Attributes
    ----------
    failures
        What happened (``"Class: message"``), by the names of slides.
    """

    def __init__(self, message: str, failures: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, str]]]:
        return type(self), (str(self), self.failures)


class CredentialsError(MicrotomeError):
    """Credentials must not go where they would go: a pickle, plain HTTP, another cloud's host."""


class OptionError(MicrotomeError, ValueError):
    """An argument has no meaning here."""


class MissingDependencyError(MicrotomeError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class MicrotomeWarning(UserWarning):
    """Base of every warning this library emits."""


class GeometryWarning(MicrotomeWarning):
    """Stated spacings, extents or positions disagree with each other."""


class FrameOrderWarning(MicrotomeWarning):
    """A file does not say in which order its frames lie."""


class AlternativesWarning(MicrotomeWarning):
    """Several instances claim the same pixels; one was chosen."""


class IncompleteSlideWarning(MicrotomeWarning):
    """Parts or frames that should be there are not."""


class SlowAccessWarning(MicrotomeWarning):
    """A file allows no random access; it is read whole."""


class NoProfileWarning(MicrotomeWarning):
    """An image has no ICC profile, so that its colours are not known: they are left as they are."""


class TranscodedWarning(MicrotomeWarning):
    """A server encodes the pixels anew before it sends them, which may alter them."""
