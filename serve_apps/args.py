"""What an application is built with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument
from serve_apps.security import ApiKey
from serve_apps.services import ServeSettings


class ServeArgs(BaseModel):
    """The arguments of `build`: what is served, by how many processes, to whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "countdown"
    """A packaged model's name or a Hugging Face folder, which every machine of the cluster must have."""
    workers: Annotated[int, Field(ge=1, le=1_024)] = 1
    """Model workers."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | None = None
    """CPUs that Ray reserves for each worker, and its threads. By default an equal part of the free ones, but for one
    that is left to HTTP."""
    min_ingresses: Annotated[int, Field(ge=1, le=256)] = 1
    max_ingresses: Annotated[int, Field(ge=1, le=256)] = 4
    """Bounds of the number of HTTP processes, which follows the load."""
    target_ongoing_requests: Annotated[float, Field(gt=0.0)] = 256.0
    """Requests under way in one HTTP process, above which another one is started."""
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 1_024
    """Requests under way in one HTTP process, above which more have to wait."""
    max_queued_requests: Annotated[int, Field(ge=-1)] = 1_024
    """Requests that may wait; more are refused with 503. -1 sets no limit."""
    drain_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """How long requests under way may go on when a process is to end."""
    keys: str | None = None
    """A JSON file with a list of keys: `[{"id": …, "sha256": …, "limits": {…}}]`. Without it nobody is asked."""
    engine: EngineConfig = EngineConfig()
    settings: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_ingresses > self.max_ingresses:
            raise ValueError(f"min_ingresses must not exceed max_ingresses={self.max_ingresses}")
        return self

    def read_keys(self) -> tuple[ApiKey, ...]:
        """The keys of the file.

        Raises:
            InvalidArgument: it cannot be read, or is not such a list; the message holds no part of it.
        """
        if self.keys is None:
            return ()
        try:
            found = TypeAdapter(tuple[ApiKey, ...]).validate_python(json.loads(Path(self.keys).read_text("utf-8")))
        except OSError as error:
            raise InvalidArgument("keys", self.keys, f"cannot be read: {error.strerror}") from None
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise InvalidArgument("keys", self.keys, f"field {where} is wrong" if where else "no list") from None
        except ValueError:
            raise InvalidArgument("keys", self.keys, "cannot be read as JSON") from None
        if not found:
            raise InvalidArgument("keys", self.keys, "at least one key: with none, everybody would be let in")
        for field in ("id", "sha256"):
            if len({getattr(key, field) for key in found}) < len(found):
                raise InvalidArgument("keys", self.keys, f"each {field} at most once")
        return found
