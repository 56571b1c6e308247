"""The application on Ray Serve: `serve run serve_apps.app:build model=countdown workers=1`."""

# Annotations are not postponed here: Serve reads that of `build`'s argument, to make it from what a user gives.
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve_apps.args import ServeArgs
from serve_apps.desk import Desk
from serve_apps.ingress import Seat
from serve_apps.security import ApiKey

_HEALTH_S, _UNWELL_S = 2.0, 60.0
"""How often Serve asks whether a process is well, and how long an answer may take."""
_DESK_LATER_S = 15.0
"""How much longer the desk may take to end than the ingresses, which it waits for."""
_LIGHT = {"num_cpus": 0}
"""What these processes reserve: what takes time runs in the model workers."""
_LOGGING = LoggingConfig(enable_access_log=False)
"""The ingresses write a line for each request themselves; see `serve_apps.edge`."""
_DESK_CALLS = 100_000
"""Calls under way at the desk: one for each reader of events. Limits on requests are the ingresses' business."""


class DeskDeployment(Desk):
    """The desk, as Serve knows it."""

    async def __del__(self) -> None:
        """Serve waits for this when it ends the replica."""
        await self.close()


class Ingress:
    """An HTTP process, as Serve knows it."""

    _app: FastAPI

    def __init__(self, args: ServeArgs, keys: Sequence[ApiKey], desk: DeploymentHandle[Any]) -> None:
        self._seat = Seat(args, keys, desk)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this after the constructor."""
        self._app = await self._seat.take()
        return self._app

    async def check_health(self) -> None:
        """Serve asks this every few seconds."""
        await self._seat.check_health(self._app)

    async def __del__(self) -> None:
        """Serve waits for this when it ends the replica, after the requests under way."""
        await self._seat.close()


def build(args: ServeArgs) -> Application:
    """The application: a desk, and as many ingresses as the load asks for.

    Raises:
        InvalidArgument: the file of keys cannot be read.
    """
    keys = args.read_keys()
    desk = serve.deployment(
        name="Desk",
        num_replicas=1,
        max_ongoing_requests=_DESK_CALLS,
        ray_actor_options=_LIGHT,
        logging_config=_LOGGING,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_UNWELL_S,
        graceful_shutdown_timeout_s=args.drain_seconds + _DESK_LATER_S,
    )(DeskDeployment)
    ingress = serve.deployment(
        name="Ingress",
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_ingresses,
            max_replicas=args.max_ingresses,
            target_ongoing_requests=args.target_ongoing_requests,
        ),
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        ray_actor_options=_LIGHT,
        logging_config=_LOGGING,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_UNWELL_S,
        graceful_shutdown_timeout_s=args.drain_seconds,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, keys, desk.bind(args, keys))
