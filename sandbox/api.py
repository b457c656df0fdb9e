"""What the two interfaces of the hosted side have in common."""

from __future__ import annotations

import hmac
import sqlite3

from sandbox.blob_store import BlobStore
from sandbox.journal import Journal, Options


class Api:
    """An interface with tables of its own in the common database, and a secret to come in with."""

    schema: str

    def __init__(
        self,
        db: sqlite3.Connection,
        journal: Journal,
        options: Options,
        store: BlobStore,
        secret: str,
    ) -> None:
        self._db = db
        self._journal = journal
        self._options = options
        self._store = store
        self._secret = secret
        db.executescript(self.schema)

    def _is_secret(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._secret.encode())
