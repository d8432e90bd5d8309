"""Decides which requests may start under the quotas of their tenant and project.

A request that computes tokens passes the gate once, before it competes for a device: at once where both accounts are
open, else in order of arrival within its project. It holds its tokens and its place among the running ones from there
to its end. Pure: time comes in as an argument; who may start later is told by `take_news`.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from openrl.protocol.runs import RequestKind
from openrl.rpc.messages import Outcome
from openrl.scheduler.accounts import Account, Closed, Moment, day_end, month_end
from openrl.store.base import RequestRow
from openrl.store.cluster import Pause
from openrl.store.ledger import DEFAULT_PROJECT, to_us
from openrl.store.quotas import NO_LIMITS, UNBOUNDED, WHOLE_TENANT, Bound, DeviceUse, Limits, QuotaRow

GATED_KINDS: frozenset[RequestKind] = frozenset(("forward_backward", "forward", "sample"))
"""The others take little time, and let people keep what they have: they only wait behind these, in order."""
_SESSIONS_REMEMBERED = 65536
Owner = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request before the gate."""

    request: RequestRow
    owner: Owner


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request holds that has passed."""

    owner: Owner
    num_tokens: int


class QuotaGate:
    """All accounts, and who waits before the gate."""

    def __init__(self, defaults: Limits = NO_LIMITS) -> None:
        self._defaults = defaults
        self._limits: dict[Owner, Limits] = {}
        self._accounts: dict[Owner, Account] = {}
        self._projects: OrderedDict[str, str] = OrderedDict()  # by session
        self._granted: dict[str, Grant] = {}
        self._waiting: dict[str, Waiting] = {}
        self._lanes: dict[str, dict[str, list[tuple[int, str]]]] = {}  # by tenant and project: position, request
        self._wakes: dict[str, float] = {}  # when something opens by itself, by tenant
        self._changed: dict[str, None] = {}  # tenants of whom something may have opened
        self._used_up: dict[str, None] = {}  # tenants whose device time has just run out, or a project's
        self._news: list[str] = []
        self._moment = Moment(0.0, 0.0)  # of the event being handled

    # -- what happens

    def begin(self, now: float, utc: float) -> None:
        """It is so late: a day or month may be over."""
        last = self._moment
        self._moment = Moment(now, utc, last.day_ends_at, last.month_ends_at)
        if utc >= last.day_ends_at:
            is_new_month = utc >= last.month_ends_at
            for account in self._accounts.values():
                account.day_us = 0
                account.month_us = 0 if is_new_month else account.month_us
            self._moment = Moment(now, utc, day_end(utc), month_end(utc))
            self._changed.update(dict.fromkeys(self._lanes))
        for tenant_id in [tenant_id for tenant_id, at in self._wakes.items() if at <= now]:
            self._changed[tenant_id] = None

    def set_quotas(self, rows: Iterable[QuotaRow]) -> None:
        """These are set; all others have gone."""
        self._limits = {(row.tenant_id, row.project_id): row.limits for row in rows}
        for owner, account in self._accounts.items():
            account.set_limits(self._limits_of(owner), self._moment.now)
        self._changed.update(dict.fromkeys(self._lanes))

    def set_used(self, this_month: Iterable[DeviceUse], today: Iterable[DeviceUse]) -> None:
        """What was used before the first event; what is used later is counted here."""
        for use in this_month:
            for account in self._both((use.tenant_id, use.project_id)):
                account.month_us += use.busy_us
        for use in today:
            for account in self._both((use.tenant_id, use.project_id)):
                account.day_us += use.busy_us

    def note_project(self, session_id: str, project_id: str) -> None:
        """The session's requests count for this project."""
        self._projects[session_id] = project_id
        self._projects.move_to_end(session_id)
        if len(self._projects) > _SESSIONS_REMEMBERED:
            self._projects.popitem(last=False)

    def ask(self, request: RequestRow) -> bool:
        """Whether the request may start; if not, `take_news` will name it."""
        name = request.request_id
        if request.kind not in GATED_KINDS or name in self._granted:
            return True
        if name not in self._waiting:
            owner = (request.tenant_id, self._project_of(request))
            if request.tenant_id not in self._lanes and not any(map(self._closed, self._both(owner))):
                self._grant(request, owner)
                return True
            self._wait(Waiting(request, owner))
            self._pump(request.tenant_id)
            if name in self._granted:
                self._news.remove(name)
        return name in self._granted

    def end(self, request: RequestRow, outcome: Outcome) -> None:
        """The request ended, wherever it was."""
        self._waiting.pop(request.request_id, None)
        grant = self._granted.pop(request.request_id, None)
        owner = (request.tenant_id, self._project_of(request)) if grant is None else grant.owner
        busy_us = to_us(outcome.busy_s)
        for account in self._both(owner):
            was_used_up = account.is_used_up()
            if grant is not None:
                account.take(min(outcome.num_tokens, grant.num_tokens) - grant.num_tokens, -1)
            account.month_us += busy_us
            account.day_us += busy_us
            if account.is_used_up() and not was_used_up:
                self._used_up[request.tenant_id] = None
        if request.tenant_id in self._lanes:
            self._changed[request.tenant_id] = None

    def revoke(self, request: RequestRow) -> None:
        """A request that had passed is on no worker: it waits again, before those that came later."""
        grant = self._granted.pop(request.request_id, None)
        if grant is not None:
            for account in self._both(grant.owner):
                account.take(-grant.num_tokens, -1)
            self._wait(Waiting(request, grant.owner))
            self._changed[request.tenant_id] = None

    # -- what is to be done

    def take_used_up(self) -> list[str]:
        """Tenants of whom what has passed and is on no worker must be revoked."""
        used_up, self._used_up = self._used_up, {}
        return list(used_up)

    def take_news(self) -> list[str]:
        """Ids of requests that waited and may start."""
        changed, self._changed = self._changed, {}
        for tenant_id in changed:
            self._pump(tenant_id)
        news, self._news = self._news, []
        return [name for name in news if name in self._granted]

    def wakes_at(self) -> float:
        """When the next event should be, if none comes before."""
        return min(self._wakes.values(), default=math.inf)

    def pauses(self) -> dict[str, Pause]:
        """Why requests wait: by tenant id, or by `pause_key` where only a project's do."""
        pauses: dict[str, Pause] = {}
        for tenant_id, lanes in self._lanes.items():
            for project_id in (WHOLE_TENANT, *lanes):
                closed = self._closed(self._account((tenant_id, project_id)))
                if closed is not None:
                    pauses[pause_key(tenant_id, project_id)] = Pause("paused_rate_limit", closed.reason)
                    if project_id == WHOLE_TENANT:
                        break
        return pauses

    def stored_bound(self, request: RequestRow) -> Bound:
        """What a save of this request must fit into."""
        owner = (request.tenant_id, self._project_of(request))
        tenant, project = (self._limits_of((owner[0], each)).bound("stored_bytes") for each in ("", owner[1]))
        bound = Bound(tenant, project)
        return UNBOUNDED if bound.is_open() else bound

    # -- inside

    def _wait(self, waiting: Waiting) -> None:
        request, (tenant_id, project_id) = waiting.request, waiting.owner
        self._waiting[request.request_id] = waiting
        lane = self._lanes.setdefault(tenant_id, {}).setdefault(project_id, [])
        heapq.heappush(lane, (request.position, request.request_id))

    def _pump(self, tenant_id: str) -> None:
        """Let pass who may, the earliest arrivals first; note when the next may."""
        self._wakes.pop(tenant_id, None)
        while (lanes := self._clean_lanes(tenant_id)) is not None:
            tenant_closed = self._closed(self._account((tenant_id, WHOLE_TENANT)))
            if tenant_closed is not None:
                self._wakes[tenant_id] = tenant_closed.until
                break
            closed = {name: self._closed(self._account((tenant_id, name))) for name in lanes}
            heads = [(lanes[name][0], name) for name in lanes if closed[name] is None]
            if not heads:
                self._wakes[tenant_id] = min(each.until for each in closed.values() if each is not None)
                break
            (_, request_id), name = min(heads)
            heapq.heappop(lanes[name])
            passing = self._waiting.pop(request_id)
            self._grant(passing.request, passing.owner)
            self._news.append(request_id)

    def _clean_lanes(self, tenant_id: str) -> dict[str, list[tuple[int, str]]] | None:
        """The tenant's lanes that have somebody waiting at their head; None if there are none."""
        lanes = self._lanes.get(tenant_id, {})
        for name, lane in list(lanes.items()):
            while lane and lane[0][1] not in self._waiting:
                heapq.heappop(lane)
            if not lane:
                del lanes[name]
        if not lanes:
            self._lanes.pop(tenant_id, None)
        return lanes or None

    def _grant(self, request: RequestRow, owner: Owner) -> None:
        self._granted[request.request_id] = Grant(owner, request.num_tokens)
        for account in self._both(owner):
            account.take(request.num_tokens, 1)

    def _closed(self, account: Account) -> Closed | None:
        return account.closed(self._moment)

    def _both(self, owner: Owner) -> tuple[Account, Account]:
        return self._account((owner[0], WHOLE_TENANT)), self._account(owner)

    def _account(self, owner: Owner) -> Account:
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account(owner, level_at=self._moment.now)
            account.set_limits(self._limits_of(owner), self._moment.now)
        return account

    def _limits_of(self, owner: Owner) -> Limits:
        limits = self._limits.get(owner, NO_LIMITS)
        return limits.over(self._defaults) if owner[1] == WHOLE_TENANT else limits

    def _project_of(self, request: RequestRow) -> str:
        return self._projects.get(request.session_id, DEFAULT_PROJECT)


def pause_key(tenant_id: str, project_id: str) -> str:
    """Under which a pause is published."""
    return f"{tenant_id}/{project_id}" if project_id else tenant_id
