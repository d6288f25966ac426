"""What users may do with services."""

import logging
from collections.abc import Callable

from controlplane.api import lookup
from controlplane.api.access import caller
from controlplane.api.merging import replace_known
from controlplane.api.paging import read_page
from controlplane.api.writing import ATTEMPTS, Change, Writer, same, set_labels
from controlplane.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionError,
)
from controlplane.store import codec, keys
from controlplane.store.protocol import Delete, Entry, Put, Unchanged
from controlplane.validate import validate_service
from estiba import wire
from estiba.kit.clock import Clock
from estiba.model import DEFAULT_NAMESPACE
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)


class Services:
    def __init__(self, writer: Writer, clock: Clock, new_id: Callable[[], str]) -> None:
        self._writer = writer
        self._store = writer.store
        self._cache = writer.cache
        self._clock = clock
        self._new_id = new_id

    async def create(self, request: control.CreateServiceRequest) -> v1.Service:
        service = self._new(request.service)
        _check(service)
        self._refuse_remains(service.metadata.id)
        await self._store_new(service)
        return self._read(service.metadata.id)

    async def get(self, request: control.GetServiceRequest) -> v1.Service:
        await self._cache.catch_up()
        return self._read(request.service)

    async def list_page(self, request: control.ListServicesRequest) -> control.ListServicesResponse:
        page = await read_page(
            self._store,
            keys.SERVICES,
            parse_service,
            size=request.page_size,
            token=request.page_token,
        )
        await self._cache.catch_up()
        return control.ListServicesResponse(
            services=[lookup.with_status(self._cache, each) for each in page.items],
            next_page_token=page.next_token,
            revision=page.revision,
        )

    async def update(self, request: control.UpdateServiceRequest) -> v1.Service:
        def change(service: v1.Service) -> None:
            replace_known(service.spec, request.spec)
            set_labels(service.metadata, request.labels)

        return await self._update(request.service, change, read_at=request.read_at)

    async def scale(self, request: control.ScaleServiceRequest) -> v1.Service:
        def change(service: v1.Service) -> None:
            service.spec.replicated.replicas = request.replicas

        return await self._update(request.service, change, read_at=0)

    async def delete(self, request: control.DeleteServiceRequest) -> control.DeleteServiceResponse:
        await self._cache.catch_up()
        service = lookup.service(self._cache, request.service)
        key = keys.service(service.metadata.id)
        name_key = keys.service_name(service.metadata.namespace, service.metadata.name)

        def change(entry: Entry | None) -> Change:
            if entry is None:
                return Change((), ())
            return Change([Unchanged(key, entry.mod_revision)], [Delete(key), Delete(name_key)])

        await self._writer.update(key, change, read_at=0, what=_what(service))
        log.info("%s deleted service %s", caller(), service.metadata.name)
        return control.DeleteServiceResponse(id=service.metadata.id)

    def _read(self, id_or_name: str) -> v1.Service:
        return lookup.with_status(self._cache, lookup.service(self._cache, id_or_name))

    # ------------------------------------------------------------------ creating

    def _new(self, asked: v1.Service) -> v1.Service:
        """Return the service to be stored: id, name, labels and spec are the user's."""
        service = v1.Service()
        service.CopyFrom(asked)
        metadata = service.metadata
        metadata.id = metadata.id or self._new_id()
        metadata.namespace = metadata.namespace or DEFAULT_NAMESPACE
        metadata.generation = 1
        metadata.created_at.CopyFrom(wire.timestamp(self._clock.now()))
        self._writer.stamp(metadata)
        service.template_generation = 1
        return service

    async def _store_new(self, service: v1.Service) -> None:
        """Store a service that is not there yet; one with this id and name is left as it is.

        Raises:
            AlreadyExistsError: id or name belong to another service.
            PreconditionError: a deleted service had this id, and something of it is left.
        """
        key = keys.service(service.metadata.id)
        template = self._template(service)
        name_key = keys.service_name(service.metadata.namespace, service.metadata.name)
        change = Change(
            [Unchanged(key, 0), Unchanged(name_key, 0), Unchanged(template.key, 0)],
            [
                Put(key, codec.encode(service)),
                Put(name_key, service.metadata.id.encode()),
                template,
            ],
        )
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._writer.write(change)
            except ConflictError:
                if await self._is_stored(service, name_key):
                    return
            except OutcomeUnknownError:
                if attempt == ATTEMPTS:
                    raise
            else:
                log.info("%s created service %s", caller(), service.metadata.name)
                return
        raise ConflictError(name_key, read_at=0)

    async def _is_stored(self, service: v1.Service, name_key: str) -> bool:
        """Say whether the create was done before; False when what was in its way is gone."""
        await self._cache.catch_up()
        metadata = service.metadata
        stored = self._cache.services.get(metadata.id)
        if stored is not None:
            if stored.metadata.name == metadata.name:
                return True
            raise AlreadyExistsError(
                f"service {metadata.id} already exists, named {stored.metadata.name}"
            )
        if await self._store.get(name_key) is not None:
            raise AlreadyExistsError(f"service {metadata.name} already exists")
        self._refuse_remains(metadata.id)
        return False

    def _refuse_remains(self, service_id: str) -> None:
        """Refuse an id while a new task could get the name of one that a node still has."""
        if service_id in self._cache.services:
            return
        if self._cache.tasks_of(service_id) or (service_id, 1) in self._cache.templates:
            raise PreconditionError(
                f"the service that had the id {service_id} is still being removed:"
                " try again, or choose another id"
            )

    def _template(self, service: v1.Service) -> Put:
        template = v1.Template(
            service_id=service.metadata.id,
            generation=service.template_generation,
            template=service.spec.template,
            created_at=wire.timestamp(self._clock.now()),
        )
        key = keys.template(service.metadata.id, service.template_generation)
        return Put(key, codec.encode(template))

    # ------------------------------------------------------------------ changing

    async def _update(
        self, id_or_name: str, change: Callable[[v1.Service], None], *, read_at: int
    ) -> v1.Service:
        await self._cache.catch_up()
        known = lookup.service(self._cache, id_or_name)
        key = keys.service(known.metadata.id)

        def changed(entry: Entry | None) -> Change:
            if entry is None:
                raise NotFoundError(f"there is no service {id_or_name}")
            return self._changed(entry, change)

        await self._writer.update(key, changed, read_at=read_at, what=_what(known))
        return self._read(known.metadata.id)

    def _changed(self, entry: Entry, change: Callable[[v1.Service], None]) -> Change:
        before = v1.Service.FromString(entry.value)
        after = v1.Service()
        after.CopyFrom(before)
        change(after)
        if same(before, after):
            return Change((), ())
        _check(after)
        after.metadata.generation += 1
        self._writer.stamp(after.metadata)
        puts = []
        if not same(before.spec.template, after.spec.template):
            after.template_generation += 1
            puts.append(self._template(after))
        log.info(
            "%s changed service %s to generation %d",
            caller(),
            after.metadata.name,
            after.metadata.generation,
        )
        return Change(
            [Unchanged(entry.key, entry.mod_revision)],
            [Put(entry.key, codec.encode(after)), *puts],
        )


def parse_service(entry: Entry) -> v1.Service:
    service = v1.Service.FromString(entry.value)
    service.metadata.revision = entry.mod_revision
    return service


def _check(service: v1.Service) -> None:
    faults = validate_service(service.metadata, service.spec)
    if faults:
        raise InvalidError(faults)


def _what(service: v1.Service) -> str:
    return f"service {service.metadata.name}"
