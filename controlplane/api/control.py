"""The API for users: every method is one call of the room it belongs to."""

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane.api.logs import Logs
from controlplane.api.nodes import Nodes
from controlplane.api.services import Services
from controlplane.api.tasks import Tasks
from controlplane.api.tokens import Tokens
from controlplane.api.watch import Watches
from controlplane.store.cache import Cache
from estiba.v1 import control_pb2 as pb
from estiba.v1 import control_pb2_grpc as pb_grpc
from estiba.v1 import types_pb2 as v1

Context = aio.ServicerContext[Any, Any]


class ControlServicer(pb_grpc.ControlServicer):
    def __init__(
        self,
        *,
        services: Services,
        nodes: Nodes,
        tasks: Tasks,
        watches: Watches,
        logs: Logs,
        tokens: Tokens,
        cache: Cache,
        version: str,
    ) -> None:
        self._services = services
        self._nodes = nodes
        self._tasks = tasks
        self._watches = watches
        self._logs = logs
        self._tokens = tokens
        self._cache = cache
        self._version = version

    async def CreateService(self, request: pb.CreateServiceRequest, context: Context) -> v1.Service:
        return await self._services.create(request)

    async def GetService(self, request: pb.GetServiceRequest, context: Context) -> v1.Service:
        return await self._services.get(request)

    async def ListServices(
        self, request: pb.ListServicesRequest, context: Context
    ) -> pb.ListServicesResponse:
        return await self._services.list_page(request)

    async def UpdateService(self, request: pb.UpdateServiceRequest, context: Context) -> v1.Service:
        return await self._services.update(request)

    async def ScaleService(self, request: pb.ScaleServiceRequest, context: Context) -> v1.Service:
        return await self._services.scale(request)

    async def DeleteService(
        self, request: pb.DeleteServiceRequest, context: Context
    ) -> pb.DeleteServiceResponse:
        return await self._services.delete(request)

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> v1.Task:
        return await self._tasks.get(request)

    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        return await self._tasks.list_page(request)

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> v1.Node:
        return await self._nodes.get(request)

    async def ListNodes(
        self, request: pb.ListNodesRequest, context: Context
    ) -> pb.ListNodesResponse:
        return await self._nodes.list_page(request)

    async def UpdateNode(self, request: pb.UpdateNodeRequest, context: Context) -> v1.Node:
        return await self._nodes.update(request)

    async def RemoveNode(
        self, request: pb.RemoveNodeRequest, context: Context
    ) -> pb.RemoveNodeResponse:
        return await self._nodes.remove(request)

    def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        return self._watches.watch(request)

    def Logs(self, request: pb.LogsRequest, context: Context) -> AsyncIterator[pb.LogsResponse]:
        return self._logs.read(request)

    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, context: Context
    ) -> pb.CreateJoinTokenResponse:
        return await self._tokens.create(request)

    async def ListJoinTokens(
        self, request: pb.ListJoinTokensRequest, context: Context
    ) -> pb.ListJoinTokensResponse:
        return await self._tokens.list_all()

    async def RemoveJoinToken(
        self, request: pb.RemoveJoinTokenRequest, context: Context
    ) -> pb.RemoveJoinTokenResponse:
        return await self._tokens.remove(request)

    async def GetCluster(
        self, request: pb.GetClusterRequest, context: Context
    ) -> pb.GetClusterResponse:
        await self._cache.catch_up()
        return pb.GetClusterResponse(
            cluster=self._cache.cluster,
            members=sorted(self._cache.members.values(), key=lambda member: member.id),
            version=self._version,
            revision=self._cache.revision,
        )
