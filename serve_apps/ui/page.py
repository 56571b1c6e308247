"""The live page: type a problem, watch its tree grow. The same viewer as the offline one, fed by a stream.

All is inline, and the page's policy lets it speak to this server alone.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from dendrite.search.run import ALGORITHMS
from dendrite.viewer.page import closed_script, d3_script, digest, viewer_script, viewer_style

router = APIRouter(tags=["Page"])


@router.get("/ui", response_class=HTMLResponse)
async def live_page() -> HTMLResponse:
    """A page on which searches are made, watched, cancelled and branched by hand. It asks for the API key itself."""
    html, policy = _page()
    return HTMLResponse(html, headers={"content-security-policy": policy})


@cache
def _page() -> tuple[str, str]:
    """The page and its policy, which are the same for everybody."""
    style, d3 = viewer_style() + _asset("live.css"), d3_script()
    live = viewer_script() + closed_script(_asset("live.js"))
    policy = (
        f"default-src 'none'; script-src {digest(d3)} {digest(live)}; style-src {digest(style)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    algorithms = "".join(f"<option>{name}</option>" for name in ALGORITHMS)
    fields = {"style": style, "d3": d3, "live": live, "algorithms": algorithms}
    return re.sub("%([a-z0-9]+)%", lambda match: fields[match.group(1)], _asset("page.html")), policy


def _asset(name: str) -> str:
    return resources.files("serve_apps.ui").joinpath("assets", name).read_text(encoding="utf-8")
