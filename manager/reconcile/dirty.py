"""What must be looked at again: the part of the cluster that changed since the last round."""

from __future__ import annotations

from shoal.model.defaults import is_terminal
from shoal.model.enums import ActionKind, TaskState
from shoal.model.objects import AnyObject, Cluster, Network, Node, Service, Task
from shoal.model.row import Row
from shoal.model.types import NodeDescription


class Dirty(Row, frozen=True):
    """Ids of what changed; `everything` stands for all of them (start-up, resync).

    services: examined by every planner. nodes: their services and all global ones are examined,
    their tasks enforced, and waiting tasks of every service are tried again. tasks: ended or gone,
    so that others may fit where they were. networks: new or gone, or somebody wants to be attached
    to them; subnets and addresses are given in every round. room: a round has dealt with nodes and
    tasks, but waiting tasks of other services are still to be tried.
    """

    services: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    everything: bool = False
    room: bool = False

    def union(self, other: Dirty) -> Dirty:
        """Both."""
        return Dirty(
            services=self.services | other.services,
            nodes=self.nodes | other.nodes,
            tasks=self.tasks | other.tasks,
            networks=self.networks | other.networks,
            everything=self.everything or other.everything,
            room=self.room or other.room,
        )

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        ids = self.services or self.nodes or self.tasks or self.networks
        return bool(self.everything or self.room or ids)


NOTHING = Dirty()
EVERYTHING = Dirty(everything=True)


def dirty_from_event(kind: ActionKind, old: AnyObject | None, new: AnyObject | None) -> Dirty:
    """What one change of the store makes dirty.

    old: the object before, None for CREATE. new: the object after, None for REMOVE.
    """
    row = new if new is not None else old
    match row:
        case Task():
            return _of_task(old if isinstance(old, Task) else None,
                            new if isinstance(new, Task) else None)  # fmt: skip
        case Service():
            return _of_service(old if isinstance(old, Service) else None, row)
        case Node():
            return _of_node(old if isinstance(old, Node) else None, row, kind)
        case Network():
            return NOTHING if old is not None and new is not None else _network(row)
        case Cluster():
            same = isinstance(old, Cluster) and old.spec == row.spec
            return NOTHING if same else EVERYTHING
        case _:
            return NOTHING


def _network(network: Network) -> Dirty:
    return Dirty(networks=frozenset({network.id}))


def _of_task(old: Task | None, new: Task | None) -> Dirty:
    if new is None:
        if old is None:
            return NOTHING
        freed = not is_terminal(old) and bool(old.node_id)
        return _service(old, freed=freed)
    if old is None:
        return _service(new, freed=False)
    freed = is_terminal(new) and not is_terminal(old)
    moved = new.status.state is not old.status.state and (
        new.status.state >= TaskState.RUNNING or new.status.state <= TaskState.PENDING
    )
    if freed or moved or new.desired_state is not old.desired_state:
        return _service(new, freed=freed)
    return NOTHING


def _service(task: Task, *, freed: bool) -> Dirty:
    return Dirty(
        services=frozenset({task.service_id} if task.service_id else ()),
        tasks=frozenset({task.id} if freed else ()),
        networks=frozenset(wish.target for wish in (() if task.service_id else task.spec.networks)),
    )


def _of_service(old: Service | None, row: Service) -> Dirty:
    same = (
        old is not None
        and old is not row
        and (
            old.spec == row.spec
            and old.pending_delete == row.pending_delete
            and old.update_status == row.update_status
            and old.endpoint == row.endpoint
            and old.job_status == row.job_status
            and old.rebalance_moves == row.rebalance_moves
        )
    )
    return NOTHING if same else Dirty(services=frozenset({row.id}))


def _without_images(node: Node) -> NodeDescription:
    """What a node says of itself, but for its images: they make nothing fit that did not."""
    return node.description.replaced(images=b"") if node.description.images else node.description


def _of_node(old: Node | None, row: Node, kind: ActionKind) -> Dirty:
    same = (
        kind is ActionKind.UPDATE
        and old is not None
        and (
            old.spec == row.spec
            and _without_images(old) == _without_images(row)
            and old.status == row.status
            and old.role is row.role
            and old.ingress == row.ingress
        )
    )
    return NOTHING if same else Dirty(nodes=frozenset({row.id}))
