"""What a job was begun with, in a file beside its results, so that it can be taken up without being told again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dendrite.errors import InvalidArgument
from dendrite.files import replace
from dendrite.job_file import Contents, JobFile, JobFileError
from dendrite.job_lock import JobLock

_FREE = frozenset({"workers", "local", "concurrency", "attempts", "sort"})
"""Arguments that change where and how fast a job runs, but not its results."""


class JobArguments(BaseModel):
    """The arguments of `dendrite job run`. Paths are absolute; `model` may be a packaged model's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problems: str | None
    task: str
    count: int | None
    algorithm: str
    option: dict[str, Any]
    values: Literal["head", "rule", "logprob", "judge"]
    oracle: bool
    budget: dict[str, Any]
    seed: int
    traces: str | None
    model: str
    attempts: int
    workers: int
    local: bool
    concurrency: int
    sort: bool


class JobManifest(BaseModel):
    """A job as its file tells it: `inputs` counts its problems, and the digests are of them and of the task's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    version: str
    inputs: int
    inputs_digest: str
    task_digest: str | None
    arguments: JobArguments

    @classmethod
    def make(cls, version: str, inputs: tuple[str, ...], task_digest: str | None, arguments: JobArguments) -> Self:
        """The manifest of a job that begins. `version` is Dendrite's."""
        whole = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
        return cls(
            version=version, inputs=len(inputs), inputs_digest=whole, task_digest=task_digest, arguments=arguments
        )

    @classmethod
    def read(cls, out: Path) -> Self:
        """Read the manifest of the job whose results are in `out`.

        Raises:
            InvalidArgument: there is no job.
            JobFileError: its manifest can't be read.
        """
        path = manifest_path(out)
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InvalidArgument("out", str(out), f"holds no job: there is no {path.name} beside it") from None
        except OSError as error:
            raise JobFileError(str(path), None, f"cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise JobFileError(str(path), None, f"is no job of this version: {place} {first['msg']}") from None

    def write(self, out: Path) -> None:
        """Write the manifest beside the results, in one step.

        Raises:
            InvalidArgument: it cannot be written there.
        """
        try:
            replace(manifest_path(out), self.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise InvalidArgument("out", str(out), f"cannot be written: {error.strerror}") from None

    def check(self, other: JobManifest, inputs: tuple[str, ...], contents: Contents) -> None:
        """Refuse to go on with `other` than this job was begun with.

        Args:
            other: what is asked for now.
            inputs: the digests of its problems.
            contents: of the file of results, which tells the line that has changed, if it is one with a result.

        Raises:
            InvalidArgument: names what differs.
        """
        begun = self.arguments.model_dump()
        for name, value in other.arguments.model_dump().items():
            if name not in _FREE and value != begun[name]:
                raise InvalidArgument(name, value, f"the job was begun with {begun[name]!r}; give another --out")
        if other.task_digest != self.task_digest:
            raise InvalidArgument("task", self.arguments.task, "the file has changed since the job was begun")
        if other.inputs != self.inputs:
            changed = f"the job was begun with {self.inputs} problems, and now there are {other.inputs}"
            raise InvalidArgument("problems", self.arguments.problems, changed)
        if other.inputs_digest != self.inputs_digest:
            changed_at = [
                index for index, entry in contents.entries.items() if inputs[index : index + 1] != (entry.input,)
            ]
            where = f", line {min(changed_at) + 1} for one" if changed_at else ""
            raise InvalidArgument("problems", self.arguments.problems, f"have changed since the job was begun{where}")


def open_job(out: Path, manifest: JobManifest, inputs: tuple[str, ...]) -> JobFile:
    """Open the results of a job for this process alone: one that begins, or one that is there and is the same.

    Args:
        out: of the results. The manifest lies beside it, and so does the lock while it is open.
        manifest: of the job as it is asked for now.
        inputs: the digests of its problems.

    Raises:
        InvalidArgument: the job that is there is another, or what is there is no job.
        JobLocked: another process writes it.
        JobFileError: a file of the job cannot be used.
    """
    lock = JobLock(out)
    try:
        if manifest_path(out).exists():
            JobManifest.read(out).check(manifest, inputs, Contents.read(out))
        else:
            _check_free(out, manifest.arguments.traces)
            manifest.write(out)
        return JobFile(out, inputs, lock)
    except BaseException:
        lock.close()
        raise


def _check_free(out: Path, traces: str | None) -> None:
    if out.exists():
        raise InvalidArgument("out", str(out), "is there already, and is not of a job")
    if traces is not None and Path(traces).is_dir() and any(Path(traces).iterdir()):
        raise InvalidArgument("traces", traces, "holds traces already, which are not of this job")


def manifest_path(out: Path) -> Path:
    """Where the manifest of a file of results lies."""
    return out.with_name(out.name + ".job.json")
