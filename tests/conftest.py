"""Settings that hold for every test, made before torch or Ray is imported."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from serve_apps.ray_settings import prefer_direct

# The cores belong to the tests' own processes, not to each one's thread pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in a test talks to the network: no hub, no usage report. Ray writes no token to the home folder.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray Serve passes requests on as `dendrite serve` has it.
prefer_direct(os.environ)

# Without a GPU the Triton kernels run in their interpreter, which must be chosen before they are defined.
if not any(os.path.exists(device) for device in ("/dev/nvidia0", "/dev/nvidiactl")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine must not fail a property, so an example has no deadline. CI draws the same ones each time.
settings.register_profile("dendrite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dendrite"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dendrite")

# A shell that runs the tests in the background has them ignore Ctrl-C, and some of them press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """The one Ray of this process, with room for several clusters, whatever the machine."""
    import ray

    ray.init(
        "local",
        num_cpus=16,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
