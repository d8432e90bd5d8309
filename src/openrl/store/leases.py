"""SQL of leases and of the scheduler's status. Time is the database's."""

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, and_, delete, or_, select, text, update

from openrl.errors import LeaseLost
from openrl.store.cluster import Lease, Load, Pause, SchedulerStatus, WorkerStatus
from openrl.store.schema import leases, scheduler_status

_NOW = {
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"),
}
_NOBODY = ""
_WORKER_FIELDS = tuple(each.name for each in fields(WorkerStatus))
_LOAD_FIELDS = tuple(each.name for each in fields(Load))


def acquire(connection: Connection, name: str, holder: str, address: str, ttl_s: float) -> Lease | None:
    """The lease if it is free, has expired or is the holder's own."""
    now = _now(connection)
    values = {"holder": holder, "address": address, "expires_at": now + ttl_s}
    row = connection.execute(select(leases).where(leases.c.name == name)).first()
    if row is None:
        connection.execute(leases.insert(), {"name": name, "epoch": 1, **values})
        return Lease(name, holder, 1, ttl_s, address)
    if row.holder not in (holder, _NOBODY) and row.expires_at > now:
        return None
    epoch = row.epoch + (row.holder != holder)
    connection.execute(update(leases).where(leases.c.name == name).values(epoch=epoch, **values))
    return Lease(name, holder, epoch, ttl_s, address)


def renew(connection: Connection, lease: Lease, ttl_s: float) -> Lease:
    """The same lease, valid for longer."""
    held = and_(leases.c.name == lease.name, leases.c.epoch == lease.epoch, leases.c.holder == lease.holder)
    renewed = connection.execute(update(leases).where(held).values(expires_at=_now(connection) + ttl_s))
    if renewed.rowcount == 0:
        raise lost(lease)
    return Lease(lease.name, lease.holder, lease.epoch, ttl_s, lease.address)


def release(connection: Connection, lease: Lease) -> None:
    """Free the lease if it is still held. Its row stays: epochs never repeat."""
    held = and_(leases.c.name == lease.name, leases.c.epoch == lease.epoch)
    connection.execute(update(leases).where(held).values(holder=_NOBODY, address="", expires_at=0.0))


def read(connection: Connection, name: str) -> Lease | None:
    """The lease as it is held now."""
    row = connection.execute(select(leases).where(leases.c.name == name)).first()
    left_s = 0.0 if row is None else row.expires_at - _now(connection)
    if row is None or left_s <= 0.0:
        return None
    return Lease(row.name, row.holder, row.epoch, left_s, row.address)


def is_fenced_off(connection: Connection, lease: Lease) -> bool:
    """Whether another holder has had the lease since; exact while the write lock is held."""
    return connection.scalar(select(leases.c.epoch).where(leases.c.name == lease.name)) != lease.epoch


def lost(lease: Lease) -> LeaseLost:
    """What a writer is told who leads no longer."""
    return LeaseLost(f"{lease.holder} does not hold the lease {lease.name!r} of epoch {lease.epoch} any more")


def publish(connection: Connection, status: SchedulerStatus, fence: Lease | None) -> None:
    """Replace the status."""
    name, epoch = ("", 0) if fence is None else (fence.name, fence.epoch)
    connection.execute(delete(scheduler_status))
    connection.execute(scheduler_status.insert(), {"body": asdict(status), "lease_name": name, "epoch": epoch})


def read_status(connection: Connection) -> SchedulerStatus:
    """The last status if its lease is held, or if it has none."""
    of_lease = and_(leases.c.name == scheduler_status.c.lease_name, leases.c.epoch == scheduler_status.c.epoch)
    is_held = or_(scheduler_status.c.lease_name == "", leases.c.expires_at > _now(connection))
    query = select(scheduler_status.c.body).select_from(scheduler_status).outerjoin(leases, of_lease).where(is_held)
    body: dict[str, Any] | None = connection.scalar(query)
    if body is None:
        return SchedulerStatus()
    pauses = {tenant_id: Pause(**pause) for tenant_id, pause in body["pauses"].items()}
    # A leader of an earlier version may tell less than this, one of a later version more.
    workers = tuple(_worker_status(each) for each in body.get("workers", ()))
    told: dict[str, Any] = body.get("load", {})
    load = Load(**{name: told[name] for name in _LOAD_FIELDS if name in told})
    return SchedulerStatus(tuple(body["base_models"]), pauses, body["num_workers"], workers, load)


def _worker_status(told: dict[str, Any]) -> WorkerStatus:
    known: dict[str, Any] = {name: told[name] for name in _WORKER_FIELDS if name in told}
    known["base_models"] = tuple(known["base_models"])
    return WorkerStatus(**known)


def _now(connection: Connection) -> float:
    now = connection.scalar(_NOW[connection.dialect.name])
    assert now is not None, "the database has a clock"
    return now
