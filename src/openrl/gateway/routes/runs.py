"""Training runs as resources: list and get."""

import asyncio

from starlette.responses import Response

from openrl.gateway.context import Call, Route
from openrl.gateway.query import check_access_scope, read_page, read_project
from openrl.gateway.replies import json_reply, show_cursor, show_run
from openrl.store.base import Json, RunRow

_LOOK_BACK = 50
"""Checkpoints looked at to find the latest of each kind."""


async def list_runs(call: Call) -> Response:
    """The tenant's runs, newest first; of one project if it is named."""
    limit, offset = read_page(call.request, default_limit=20)
    check_access_scope(call.request)
    page = await call.gateway.store.list_runs(call.tenant_id, limit, offset, read_project(call.request))
    runs = await asyncio.gather(*(_show(call, run) for run in page.items))
    return json_reply({"training_runs": list(runs), "cursor": show_cursor(page, limit, offset)})


async def get_run(call: Call) -> Response:
    """One run."""
    check_access_scope(call.request)
    run = await call.gateway.store.get_run(call.tenant_id, call.path["run_id"])
    return json_reply(await _show(call, run))


async def _show(call: Call, run: RunRow) -> Json:
    checkpoints = await call.gateway.store.list_checkpoints(call.tenant_id, _LOOK_BACK, 0, run.spec.run_id)
    return show_run(run, checkpoints)


ROUTES = (
    Route("GET", "/training_runs", list_runs, "read", query=("limit", "offset", "access_scope", "project_id")),
    Route("GET", "/training_runs/{run_id}", get_run, "read"),
)
