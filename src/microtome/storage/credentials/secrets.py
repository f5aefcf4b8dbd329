"""What does not show: values and headers that only those who ask for them see, and that no pickle takes along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from microtome.errors import CredentialsError

__all__ = ["Secret", "SecretHeaders", "refuse_pickle"]

T = TypeVar("T")


def refuse_pickle(what: str) -> NoReturn:
    """Say why a pickle was not made, and what to do."""
    raise CredentialsError(
        f"{what} holds a secret, which does not leave this process in a pickle. Remedy: let workers find it themselves "
        "(microtome.credentials.bearer(env=...), basic(user, env=...), default()), or pass travel=True"
    )


class Secret(Generic[T]):
    """A value that only `reveal` shows: a text, or an object whose repr may show more than it should."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> NoReturn:
        refuse_pickle("this object")


class _Masked(str):
    """A header's value: a str to those who send it, ``<secret>`` to those who print the locals of a frame.

    HTTP clients copy headers into dicts of their own, so it is the value that has to mask itself.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    def __getitem__(self, key: Any) -> str:
        return _Masked(str.__getitem__(self, key))  # rich cuts long strings before it prints them

    def __reduce__(self) -> NoReturn:
        refuse_pickle("this header")


class SecretHeaders(dict[str, str]):
    """Headers of which only the names show: ``<headers: Authorization>``.

    ``|`` with other headers gives `SecretHeaders` again. Each is a dict of its own: to change it changes no other.

    Attributes
    ----------
    generation
        Which making these are; `Credentials.refresh` knows by it whether newer ones have been made since.
    """

    __slots__ = ("generation",)

    def __init__(self, items: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, generation: int = 0) -> None:
        super().__init__()
        self.generation = generation
        self.update(items)

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(name, _Masked(value))

    def update(self, *args: Any, **kwargs: str) -> None:
        """Take over other headers; their values no longer show either."""
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def copy(self) -> SecretHeaders:
        """Return a copy, of the same generation."""
        return SecretHeaders(self, generation=self.generation)

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> SecretHeaders:
        return self.copy()

    def __or__(self, other: Any) -> Any:
        return SecretHeaders({**self, **other}, generation=self.generation)

    def __ror__(self, other: Any) -> Any:
        return SecretHeaders({**other, **self}, generation=self.generation)

    def __ior__(self, other: Any) -> SecretHeaders:  # type: ignore[override]
        self.update(other)
        return self

    def __repr__(self) -> str:
        return f"<headers: {', '.join(self) or 'none'}>"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        refuse_pickle(repr(self))
