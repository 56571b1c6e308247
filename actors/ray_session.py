"""Connecting this process to Ray: to a cluster that runs, or to one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

import ray
from ray._private.services import get_ray_address_from_environment

from actors import cores
from dendrite.errors import ClusterError
from dendrite.interrupts import interrupts_held

_LOCAL_OBJECT_STORE = 200 * 2**20  # bytes; messages are small, and KV never passes through the store
_ANSWERS_WITHIN_S = 5.0


class RaySession:
    """A connection to Ray. `close` ends what it began: the connection, and the Ray that it started, if it did."""

    def __init__(self, address: str | None = None, *, worker_cores: int = 0) -> None:
        """Connect.

        Args:
            address: "local" starts a new Ray on this machine; any other is "host:port" of a running one, or "auto" to
                find it. None takes the connection this process has, else the cluster that RAY_ADDRESS names, else
                the one that `ray start` began on this machine, else starts one.
            worker_cores: cores of this machine that model workers keep to (`actors.cores`), if this starts a Ray.

        Raises:
            ClusterError: there is no Ray at the address.
        """
        self._connected = False
        self._environment = contextlib.ExitStack()
        if address is None and ray.is_initialized():
            return
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        try:
            found = _running_ray(address)
            with interrupts_held():  # a Ray that has started by half would not be ended
                if found is None:
                    self._start(cores.choose(worker_cores))
                else:
                    ray.init(found, log_to_driver=False, logging_level=logging.ERROR)
                self._connected = True
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise ClusterError(f"cannot connect to Ray at {where}: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection, and with it a Ray that was started for it. Idempotent."""
        if self._connected:
            self._connected = False
            ray.shutdown()
        self._environment.close()

    def _start(self, apart: frozenset[int]) -> None:
        # A Ray for this process alone needs no password, so that none is written to the home folder.
        if "RAY_AUTH_MODE" not in os.environ:
            self._set("RAY_AUTH_MODE", "disabled")
        if apart:
            self._set(cores.VARIABLE, cores.written(apart))
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def _set(self, variable: str, value: str) -> None:
        """Set a variable of the environment until this ends."""
        before = os.environ.get(variable)
        os.environ[variable] = value
        if before is None:
            self._environment.callback(os.environ.pop, variable, None)
        else:
            self._environment.callback(os.environ.__setitem__, variable, before)


def _running_ray(address: str | None) -> str | None:
    """The address of the Ray to attach to; None to start one.

    Ray itself waits for minutes at an address where nothing listens, so that is tried here first.

    Raises:
        OSError: nothing answers at the address.
        ValueError: it is no host:port.
    """
    if address == "local":
        return None
    found = address
    if address in (None, "auto"):
        found = get_ray_address_from_environment(address, None)  # type: ignore[arg-type]  # it takes None
    if found is None or found == "local":
        return None
    if "://" in found:
        raise ValueError("Ray client addresses are not supported; give host:port of the cluster's head")
    host, _, port = found.rpartition(":")
    if not port.isdecimal():
        raise ValueError("give host:port of the cluster's head")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN_S):
            return found
    except OSError:
        if address is None and not os.environ.get("RAY_ADDRESS"):
            return None  # `ray start` was once here, and has left its address behind
        raise
