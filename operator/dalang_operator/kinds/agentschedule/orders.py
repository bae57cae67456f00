"""What annotations of an AgentSchedule ask for, as its status keeps it: with its times, and before Temporal is told.

So an order that was begun is ended with the same times, and runs are named by those: it is carried out once though the
operator dies in between and Temporal has forgotten the request. And who creates the runs can tell an ordered time from one
that comes of a schedule that is suspended by now.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from dalang_operator.kube.resources import Json
from dalang_operator.kube.status import parse_timestamp, timestamp

ORDERS_MAX = 20

OrderName = Literal["trigger", "backfill"]
"""The annotation, without its prefix; also the field of the status that has the value dealt with last."""
_TYPES: dict[OrderName, str] = {"trigger": "Trigger", "backfill": "Backfill"}
_NAMES: dict[str, OrderName] = {type_: name for name, type_ in _TYPES.items()}


@dataclass(frozen=True)
class Order:
    """What one value of an annotation asks for."""

    name: OrderName
    value: str
    """The annotation's, as the status keeps it."""
    ordered_at: datetime
    begin: datetime
    """The time of a triggered run; the first time of a backfill."""
    end: datetime
    """Likewise; the last time of a backfill."""
    is_pending: bool = True
    """Whether Temporal may not have been told yet."""


def orders_of(schedule: Json) -> tuple[Order, ...]:
    """Return the orders that the status keeps, the newest last."""
    return tuple(map(_read, schedule.get("status", {}).get("orders", ())))


def with_order(schedule: Json, order: Order) -> Json:
    """Return the status with one more order."""
    kept = (*orders_of(schedule), order)[-ORDERS_MAX:]
    return {**schedule.get("status", {}), "orders": list(map(_write, kept))}


def carried_out(schedule: Json) -> Json:
    """Return what the status says once all orders are carried out; empty where none was pending."""
    orders = orders_of(schedule)
    pending = [order for order in orders if order.is_pending]
    if not pending:
        return {}
    done = [_write(replace(order, is_pending=False)) for order in orders]
    return {**{order.name: order.value for order in pending}, "orders": done}


def is_ordered(schedule: Json, scheduled_at: datetime) -> bool:
    """Return whether somebody has asked for the run of this time by hand."""
    return any(order.begin <= scheduled_at <= order.end for order in orders_of(schedule))


def _read(entry: Json) -> Order:
    return Order(
        _NAMES[entry["type"]],
        entry["value"],
        parse_timestamp(entry["orderedAt"]),
        parse_timestamp(entry["begin"]),
        parse_timestamp(entry["end"]),
        entry.get("pending", False),
    )


def _write(order: Order) -> Json:
    return {
        "type": _TYPES[order.name],
        "value": order.value,
        "orderedAt": timestamp(order.ordered_at),
        "begin": timestamp(order.begin),
        "end": timestamp(order.end),
        **({"pending": True} if order.is_pending else {}),
    }
