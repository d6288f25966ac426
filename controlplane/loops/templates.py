"""Deletes templates that nobody needs: which those are, the orchestrator says."""

from controlplane.loops.fenced import OWN_CONDITIONS, FencedStore
from controlplane.loops.view import View
from controlplane.orchestrator import templates_to_delete
from controlplane.orchestrator.reaping import TEMPLATES_KEPT
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import MAX_TXN_OPS, Delete, Unchanged
from estiba import wire
from estiba.kit.clock import Clock
from estiba.model import ServiceId

MOST_IN_TRANSACTION = MAX_TXN_OPS - OWN_CONDITIONS

# A create that got no answer may still be on its way to the store. It compares that the service's
# first template is absent, so that one stays until no such create can arrive any more; else a
# service that was created and deleted within seconds might come back.
STRAY_S = 30.0


class Templates:
    def __init__(self, store: FencedStore, cache: Cache, view: View, clock: Clock) -> None:
        self._store = store
        self._cache = cache
        self._view = view
        self._clock = clock
        self.written = 0
        """The revision of the last deletion."""

    async def clean(self, service_id: ServiceId) -> float | None:
        """Delete what one service does not need; return after how many seconds to look again."""
        generations = self._view.generations.get(service_id, set())
        service = self._view.service(service_id)
        if not generations or (service is not None and len(generations) <= TEMPLATES_KEPT):
            return None
        current = service.template_generation if service is not None else None
        tasks = self._view.tasks_of(service_id)
        doomed = sorted(templates_to_delete(generations, tasks, current=current))
        again_after_s = None
        if service is None:
            ages_s = {each: self._age_s(service_id, each) for each in doomed}
            doomed = [each for each in doomed if ages_s[each] > STRAY_S]
            young = [STRAY_S - age_s for age_s in ages_s.values() if age_s <= STRAY_S]
            again_after_s = max(young) + 1.0 if young else None
        for start in range(0, len(doomed), MOST_IN_TRANSACTION):
            part = [
                keys.template(service_id, each)
                for each in doomed[start : start + MOST_IN_TRANSACTION]
            ]
            self.written = await self._store.commit(
                [Unchanged(key, self._cache.key_revision(key)) for key in part],
                [Delete(key) for key in part],
            )
        return again_after_s

    def _age_s(self, service_id: ServiceId, generation: int) -> float:
        template = self._cache.templates.get((service_id, generation))
        created_at_s = wire.seconds(template.created_at) if template is not None else 0.0
        return self._clock.now() - created_at_s
