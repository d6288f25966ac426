"""The gRPC server of estibad: all services, health and reflection, behind mutual TLS."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from controlplane.api.access import CERTIFICATES, CONTROL, DISPATCHER, HEALTH, PEER
from controlplane.api.certificates import CertificatesServicer
from controlplane.api.channels import SERVER_OPTIONS
from controlplane.api.control import ControlServicer
from controlplane.api.dispatcher import DispatcherServicer, PeerServicer
from controlplane.api.guard import Guard
from estiba.kit.clock import Clock
from estiba.kit.livetls import LiveTls
from estiba.v1 import certificates_pb2_grpc, control_pb2_grpc, dispatcher_pb2_grpc

# Calls that are being answered when we stop get this long; sessions end at once.
STOP_WITHIN_S = 1.0


@asynccontextmanager
async def serve(
    *,
    listen: str,
    tls: LiveTls,
    control: ControlServicer,
    certificates: CertificatesServicer,
    dispatcher: DispatcherServicer,
    peer: PeerServicer,
    on_denied: Callable[[], None],
    clock: Clock,
) -> AsyncIterator[int]:
    """Serve for the length of the block; yield the port.

    Raises:
        RuntimeError: the address cannot be listened on.
    """
    server = aio.server(interceptors=[Guard(on_denied, clock)], options=SERVER_OPTIONS)
    control_pb2_grpc.add_ControlServicer_to_server(control, server)
    certificates_pb2_grpc.add_CertificatesServicer_to_server(certificates, server)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server)
    dispatcher_pb2_grpc.add_PeerServicer_to_server(peer, server)
    checker = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    services = (CONTROL, CERTIFICATES, DISPATCHER, PEER)
    for service in services:
        await checker.set(service, health_pb2.HealthCheckResponse.SERVING)
    names = (*services, HEALTH, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    port = server.add_secure_port(listen, tls.server_credentials())
    await server.start()
    try:
        yield port
    finally:
        await checker.enter_graceful_shutdown()
        await server.stop(STOP_WITHIN_S)
