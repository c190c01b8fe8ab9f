# SPDX-License-Identifier: Apache-2.0
"""What a model has said already, on the disk: a killed evaluation goes on from there, a second one asks nothing."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gemmary.base.errors import FileError


class Replies:
    """A table of replies by request in an SQLite file; one file is of one model in one runtime.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replies = Replies(Path(folder) / "replies.db")
    ...     replies.keep([(("score", "1 + 1 =", " 2"), [-0.5, True])])
    ...     replies.close()
    ...     Replies(Path(folder) / "replies.db").get(("score", "1 + 1 =", " 2"))
    [-0.5, True]
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path)
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise FileError(f"expected a file of replies at {path}, but: {error}; remove it, or name another") from None

    def get(self, request: Sequence[Any]) -> Any:
        """The reply to a request of JSON values, or nothing.

        >>> Replies(Path(":memory:")).get(("score", "1 + 1 =", " 2")) is None
        True
        """
        row = self._file.execute("SELECT reply FROM replies WHERE request = ?", (_key(request),)).fetchone()
        return json.loads(row[0]) if row else None

    def keep(self, answered: Iterable[tuple[Sequence[Any], Any]]) -> None:
        """Requests with their replies, all or none of which are on the disk from now on.

        >>> Replies(Path(":memory:")).keep([])
        """
        rows = [(_key(request), json.dumps(reply)) for request, reply in answered]
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file.

        >>> Replies(Path(":memory:")).close()
        """
        self._file.close()


def _key(request: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
