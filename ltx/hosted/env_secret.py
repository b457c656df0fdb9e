"""A secret that is taken from `.env` again when the other side refuses it."""

from __future__ import annotations

import logging
import threading

import requests
from requests.auth import AuthBase

from ltx.errors import ConfigError
from ltx.settings import read_secret
from ltx.text import log_event, one_line, redact


class EnvSecret(AuthBase):
    """A secret in one header of every call of this process, whichever thread makes it.

    accepted: whether the other side has taken a call with it, or with the one before it.
    """

    def __init__(self, variable: str, secret: str, header: str, prefix: str = "") -> None:
        self.variable, self.secret = variable, secret
        self.header, self.prefix = header, prefix
        self.accepted = False
        self.lock = threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers[self.header] = f"{self.prefix}{self.secret}"
        return request

    def renew(self, refused: str) -> bool:
        """Whether there is another one than the refused by now; `.env` is read again for it."""
        with self.lock:
            if self.secret == refused:
                try:
                    self._take(read_secret(self.variable))
                except ConfigError as error:
                    log_event("secret_unreadable", one_line(error), logging.WARNING)
            return self.secret != refused

    def _take(self, secret: str) -> None:
        if secret != self.secret:
            redact.hide([secret])
            self.secret = secret
            log_event("secret_renewed", f"The {self.variable} before it was refused.")
