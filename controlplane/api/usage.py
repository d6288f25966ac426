"""Ask nodes what they and their tasks use now: asked for, never stored."""

import asyncio
from collections.abc import Iterable

from controlplane.api.streams import Streams
from controlplane.errors import EstibaError
from controlplane.store.cache import Cache
from estiba.v1 import dispatcher_pb2 as dispatch

# What has not come by then is missing from the answer, which says so.
WITHIN_S = 2.0


class UsageReader:
    def __init__(self, streams: Streams, cache: Cache) -> None:
        self._streams = streams
        self._cache = cache

    async def of_nodes(
        self, node_ids: Iterable[str]
    ) -> tuple[dict[str, dispatch.NodeUsage], list[str]]:
        """Return what each node answered, and a sentence for each that did not."""
        asked = sorted(set(node_ids))
        answers = await asyncio.gather(*(self._ask(node_id) for node_id in asked))
        found: dict[str, dispatch.NodeUsage] = {}
        warnings: list[str] = []
        for node_id, answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                warnings.append(answer)
            else:
                found[node_id] = answer
        return found, warnings

    async def _ask(self, node_id: str) -> dispatch.NodeUsage | str:
        node = self._cache.nodes.get(node_id)
        name = node.metadata.name if node is not None else node_id
        purpose = dispatch.Purpose(usage=dispatch.ReadUsage())
        try:
            async with (
                asyncio.timeout(WITHIN_S),
                self._streams.open(node_id, purpose) as frames,
            ):
                async for frame in frames:
                    if frame.HasField("usage"):
                        return frame.usage
                    if frame.HasField("end") and frame.end.error:
                        return f"node {name} cannot tell its usage: {frame.end.error}"
        except TimeoutError:
            return f"node {name} does not answer"
        except EstibaError as error:
            return str(error)
        return f"node {name} does not tell its usage"
