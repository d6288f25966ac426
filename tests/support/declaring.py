"""A user's calls, as functions to hand to `World.user`."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from controlplane.api.nodes import Nodes
from controlplane.api.services import Services
from controlplane.errors import NotFoundError
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1

Call = Callable[[Services, Nodes], Awaitable[object]]


def spec(*, replicas: int, image: str = "busybox", memory_bytes: int = 64 << 20) -> v1.ServiceSpec:
    return v1.ServiceSpec(
        template=v1.TaskTemplate(
            container=v1.ContainerSpec(image=image),
            resources=v1.Resources(reservations=v1.Reservations(memory_bytes=memory_bytes)),
        ),
        replicated=v1.Replicated(replicas=replicas),
    )


def create(
    name: str,
    *,
    replicas: int,
    id_: str = "",
    image: str = "busybox",
    constraints: Sequence[str] = (),
) -> Call:
    service = v1.Service(
        metadata=v1.Metadata(id=id_ or f"id-{name}", name=name),
        spec=spec(replicas=replicas, image=image),
    )
    service.spec.placement.constraints.extend(constraints)
    return lambda services, _: services.create(control.CreateServiceRequest(service=service))


def scale(name: str, replicas: int) -> Call:
    request = control.ScaleServiceRequest(service=name, replicas=replicas)
    return lambda services, _: services.scale(request)


def update(name: str, *, replicas: int, image: str) -> Call:
    wanted = spec(replicas=replicas, image=image)
    request = control.UpdateServiceRequest(service=name, spec=wanted)
    return lambda services, _: services.update(request)


def delete(name: str) -> Call:
    async def call(services: Services, _: Nodes) -> None:
        # Not found: the attempt before got no answer, and had done it.
        with suppress(NotFoundError):
            await services.delete(control.DeleteServiceRequest(service=name))

    return call


def availability(node: str, wanted: v1.Availability.ValueType) -> Call:
    request = control.UpdateNodeRequest(node=node, spec=v1.NodeSpec(availability=wanted))
    return lambda _, nodes: nodes.update(request)
