"""Who is asking: the headers that prove it, made where they are used and sent only where they may go.

Each function makes a `Credentials`. *Recipes* say where a secret comes from (an environment variable, a function, the
platform) and travel to other processes, which follow them for themselves. *Literals* hold a secret and stay here,
unless ``travel=True``.

A secret must not show: not by ``repr``, in a log, or in a traceback that prints local variables. So no frame that an
exception can pass holds one in the open. Secrets are wrapped on arrival and the arguments deleted, helpers that look
inside return what is wrong instead of raising it, and errors of other libraries are replaced outside of the ``except``
block, for their frames hold the tokens they handled.
"""

from microtome.storage.credentials.base import Credentials
from microtome.storage.credentials.functions import (
    basic,
    bearer,
    default,
    google,
    headers,
    none,
    refusal_remedy,
    resolve,
    service_account,
)
from microtome.storage.credentials.secrets import SecretHeaders

__all__ = [  # noqa: RUF022  # the functions first
    "default",
    "service_account",
    "bearer",
    "google",
    "basic",
    "headers",
    "none",
    "Credentials",
    "SecretHeaders",
    "resolve",
    "refusal_remedy",
]


def __dir__() -> list[str]:
    return __all__
