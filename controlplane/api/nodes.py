"""What users may do with nodes."""

import logging

from controlplane.api import lookup
from controlplane.api.access import caller
from controlplane.api.merging import replace_known
from controlplane.api.paging import read_page
from controlplane.api.usage import UsageReader
from controlplane.api.writing import Change, Writer, same, set_labels
from controlplane.errors import InvalidError, NotFoundError, PreconditionError
from controlplane.store import codec, keys
from controlplane.store.protocol import Delete, Entry, Put, Unchanged
from controlplane.validate import validate_node_update
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)


class Nodes:
    def __init__(self, writer: Writer, usage: UsageReader) -> None:
        self._writer = writer
        self._store = writer.store
        self._cache = writer.cache
        self._usage = usage

    async def get(self, request: control.GetNodeRequest) -> v1.Node:
        await self._cache.catch_up()
        return self._read(request.node)

    async def list_page(self, request: control.ListNodesRequest) -> control.ListNodesResponse:
        page = await read_page(
            self._store, keys.NODES, parse_node, size=request.page_size, token=request.page_token
        )
        await self._cache.catch_up()
        response = control.ListNodesResponse(
            nodes=[lookup.with_tasks(self._cache, each) for each in page.items],
            next_page_token=page.next_token,
            revision=page.revision,
        )
        if request.with_usage:
            ready = [
                each.metadata.id
                for each in response.nodes
                if each.status.state == v1.NODE_STATE_READY
            ]
            found, warnings = await self._usage.of_nodes(ready)
            for each in response.nodes:
                if each.metadata.id in found:
                    each.status.usage.CopyFrom(found[each.metadata.id].node)
            response.warnings.extend(warnings)
        return response

    async def update(self, request: control.UpdateNodeRequest) -> v1.Node:
        await self._cache.catch_up()
        known = lookup.node(self._cache, request.node)
        faults = validate_node_update(request.spec, request.labels)
        if faults:
            raise InvalidError(faults)

        def change(entry: Entry | None) -> Change:
            if entry is None:
                raise NotFoundError(f"there is no node {request.node}")
            before = v1.Node.FromString(entry.value)
            after = v1.Node()
            after.CopyFrom(before)
            replace_known(after.spec, request.spec)
            set_labels(after.metadata, request.labels)
            if same(before, after):
                return Change((), ())
            after.metadata.generation += 1
            self._writer.stamp(after.metadata)
            log.info("%s changed node %s", caller(), known.metadata.name)
            return Change(
                [Unchanged(entry.key, entry.mod_revision)], [Put(entry.key, codec.encode(after))]
            )

        key = keys.node(known.metadata.id)
        what = f"node {known.metadata.name}"
        await self._writer.update(key, change, read_at=request.read_at, what=what)
        return self._read(known.metadata.id)

    async def remove(self, request: control.RemoveNodeRequest) -> control.RemoveNodeResponse:
        await self._cache.catch_up()
        node = lookup.node(self._cache, request.node)
        node_id, name = node.metadata.id, node.metadata.name
        if node.status.state == v1.NODE_STATE_READY and not request.force:
            raise PreconditionError(f"node {name} is ready: stop its agent first, or use --force")

        def change(entry: Entry | None) -> Change:
            if entry is None:
                return Change((), ())
            # The tombstone refuses the node for good; its tasks are the leader's to forget.
            return Change(
                [Unchanged(entry.key, entry.mod_revision)],
                [
                    Delete(entry.key),
                    Put(keys.node_removed(node_id), entry.value),
                    Delete(keys.node_name(name)),
                    Delete(keys.node_status(node_id)),
                    Delete(keys.presence(node_id)),
                ],
            )

        key = keys.node(node_id)
        await self._writer.update(key, change, read_at=0, what=f"node {name}")
        log.info("%s removed node %s for good", caller(), name)
        return control.RemoveNodeResponse(id=node_id)

    def _read(self, id_or_name: str) -> v1.Node:
        return lookup.with_tasks(self._cache, lookup.node(self._cache, id_or_name))


def parse_node(entry: Entry) -> v1.Node:
    node = v1.Node.FromString(entry.value)
    node.metadata.revision = entry.mod_revision
    return node
