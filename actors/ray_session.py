"""Connecting this process to Ray: to a cluster that runs, or to one of our own on this machine."""

from __future__ import annotations

import logging
import os

import ray

from dendrite.errors import ClusterError

_LOCAL_OBJECT_STORE = 200 * 2**20  # bytes; messages are small, and KV never passes through the store


class RaySession:
    """A connection to Ray. `close` ends what it began: the connection, and the Ray that it started, if it did."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: "local" starts a new Ray on this machine; any other is that of a running one, "auto" finds it.
                None takes the connection this process has, else the cluster that RAY_ADDRESS names, else the one
                that `ray start` began on this machine, else starts one.

        Raises:
            ClusterError: there is no Ray at the address.
        """
        self._environment: dict[str, str | None] = {}
        self._connected = False
        if address is None and ray.is_initialized():
            return
        try:
            if address == "local":
                self._start("local")
            elif address is None:
                self._start_or_attach()
            else:
                self._attach(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            self.close()
            raise ClusterError(f"cannot connect to Ray at {address or 'this machine'}: {error}") from error
        except BaseException:
            self.close()
            raise
        self._connected = True

    def close(self) -> None:
        """End the connection, and with it a Ray that was started for it. Idempotent."""
        if self._connected:
            self._connected = False
            ray.shutdown()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment.clear()

    def _start_or_attach(self) -> None:
        try:
            self._start(None)  # refused where there is a cluster to attach to, for such a one has its own settings
        except ValueError:
            self.close()
            try:
                self._attach(None)
            except ConnectionError:
                if os.environ.get("RAY_ADDRESS"):
                    raise
                self._start("local")  # `ray start` was once here, and left only its address

    def _start(self, address: str | None) -> None:
        # A Ray for this process alone needs no password, so that none is written to the home folder.
        self._set("RAY_AUTH_MODE", "disabled")
        ray.init(
            address,
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def _attach(self, address: str | None) -> None:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)

    def _set(self, name: str, value: str) -> None:
        """Set an environment variable that has no value, until the session is closed."""
        if name not in os.environ:
            self._environment[name] = None
            os.environ[name] = value
