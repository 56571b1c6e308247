"""Names of what is kept in memory, which tell the process that kept it."""

from __future__ import annotations

import re
import secrets

from serve_apps.errors import HttpError, not_found

_ID = re.compile("(?P<kind>[a-z]+)_(?P<keeper>[0-9a-f]{8})[0-9a-f]{24}")


class Ids:
    """Makes ids such as `tree_…`, and tells what was lost with another process from what never was."""

    def __init__(self) -> None:
        self._keeper = secrets.token_hex(4)

    def new(self, kind: str) -> str:
        """An id that nobody can guess."""
        return f"{kind}_{self._keeper}{secrets.token_hex(12)}"

    def missing(self, kind: str, id: str) -> HttpError:
        """What to tell of an id that is not here: 410 if it is another process's, else 404.

        That says nothing of whether there ever was such a thing, for anybody may write down such an id.
        """
        found = _ID.fullmatch(id)
        if found is None or found["kind"] != kind or found["keeper"] == self._keeper:
            return not_found(kind, id)
        return HttpError(410, f"the {kind} {id!r} was lost when the server was started again", code=f"{kind}_lost")
