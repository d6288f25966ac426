"""The API for users over real gRPC and TLS, with a real etcd and two members."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Self

import grpc
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import aio

from controlplane.store import keys
from controlplane.store.protocol import Put
from estiba.v1 import control_pb2 as pb
from estiba.v1 import types_pb2 as v1
from tests.support.declaring import spec
from tests.support.estibad import ControlPlane, control_plane

if TYPE_CHECKING:
    from estiba.v1.control_pb2_grpc import ControlAsyncStub as Control


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture
async def first(plane: ControlPlane) -> AsyncIterator["Control"]:
    async with plane.control(member=0) as stub:
        yield stub


@pytest.fixture
async def second(plane: ControlPlane) -> AsyncIterator["Control"]:
    async with plane.control(member=1) as stub:
        yield stub


async def declare(control: "Control", name: str, *, id_: str = "", replicas: int = 2) -> v1.Service:
    service = v1.Service(metadata=v1.Metadata(id=id_, name=name), spec=spec(replicas=replicas))
    return await control.CreateService(pb.CreateServiceRequest(service=service))


class Refused:
    """Catch the one error that a block must raise."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code
        self.message = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert isinstance(error, aio.AioRpcError), "the call was not refused"
        assert error.code() is self._code, error.details()
        self.message = error.details() or ""
        return True


async def test_what_is_created_at_one_member_is_read_at_the_other(
    first: "Control", second: "Control"
) -> None:
    created = await declare(first, "two-members")

    read = await second.GetService(pb.GetServiceRequest(service="two-members"))

    assert read.metadata.id == created.metadata.id
    assert read.metadata.changed_by == "user:admin"
    assert read.metadata.generation == read.template_generation == 1
    assert read.metadata.revision > 0
    assert read.status.desired == 2
    assert not read.status.converged


async def test_a_create_sent_again_returns_the_object(first: "Control", second: "Control") -> None:
    created = await declare(first, "again", id_="id-again")
    sent_again = await declare(second, "again", id_="id-again")
    assert sent_again.metadata == created.metadata


async def test_a_name_that_is_taken_is_refused_by_name(first: "Control", second: "Control") -> None:
    await declare(first, "taken")
    async with Refused(grpc.StatusCode.ALREADY_EXISTS) as refused:
        await declare(second, "taken")
    assert refused.message == "service taken already exists"


async def test_every_fault_of_a_spec_is_told_at_once(first: "Control") -> None:
    service = v1.Service(metadata=v1.Metadata(name="No Name"), spec=spec(replicas=1, image=""))
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        await first.CreateService(pb.CreateServiceRequest(service=service))
    lines = refused.message.splitlines()
    assert any(line.startswith("metadata.name: ") for line in lines)
    assert any(line.startswith("spec.template.container.image: ") for line in lines)


async def test_an_update_of_an_old_version_is_refused(first: "Control", second: "Control") -> None:
    read = await declare(first, "old-version")
    await second.ScaleService(pb.ScaleServiceRequest(service="old-version", replicas=5))

    async with Refused(grpc.StatusCode.ABORTED) as refused:
        await first.UpdateService(
            pb.UpdateServiceRequest(
                service="old-version", spec=read.spec, read_at=read.metadata.revision
            )
        )

    revision = read.metadata.revision
    assert refused.message == (
        f"service old-version has changed since revision {revision}: read it again"
    )


async def test_scaling_is_no_rollout_and_a_change_of_the_template_is(first: "Control") -> None:
    await declare(first, "rollout")

    scaled = await first.ScaleService(pb.ScaleServiceRequest(service="rollout", replicas=3))
    assert (scaled.metadata.generation, scaled.template_generation) == (2, 1)

    changed = await first.UpdateService(
        pb.UpdateServiceRequest(service="rollout", spec=spec(replicas=3, image="other"))
    )
    assert (changed.metadata.generation, changed.template_generation) == (3, 2)

    same = await first.UpdateService(
        pb.UpdateServiceRequest(service="rollout", spec=spec(replicas=3, image="other"))
    )
    assert same.metadata.revision == changed.metadata.revision, "nothing changed, nothing written"


async def test_fields_of_a_newer_version_survive_an_update(
    plane: ControlPlane, first: "Control"
) -> None:
    created = await declare(first, "newer")
    stored = plane.etcd.store()
    entry = await stored.get(keys.service(created.metadata.id))
    assert entry is not None
    # Field 900, a string, on the service and on its container.
    unknown = b"\xa2\x38\x05hello"
    service = v1.Service.FromString(entry.value + unknown)
    service.spec.template.container.MergeFromString(unknown)
    await stored.commit([], [Put(entry.key, service.SerializeToString())])

    await first.UpdateService(
        pb.UpdateServiceRequest(service="newer", spec=spec(replicas=1, image="other"))
    )

    entry = await stored.get(keys.service(created.metadata.id))
    await stored.close()
    assert entry is not None
    after = v1.Service.FromString(entry.value)
    assert after.spec.template.container.image == "other"
    for message in (after, after.spec.template.container):
        field = UnknownFieldSet(message)[0]
        assert (field.field_number, field.data) == (900, b"hello")


async def test_a_deleted_service_is_gone_and_its_name_is_free(
    first: "Control", second: "Control"
) -> None:
    created = await declare(first, "brief")
    deleted = await first.DeleteService(pb.DeleteServiceRequest(service="brief"))
    assert deleted.id == created.metadata.id

    async with Refused(grpc.StatusCode.NOT_FOUND) as refused:
        await second.GetService(pb.GetServiceRequest(service="brief"))
    assert refused.message == "there is no service brief"
    assert (await declare(second, "brief")).metadata.id != created.metadata.id


async def test_all_pages_of_a_list_belong_to_the_revision_of_the_first(
    first: "Control", second: "Control"
) -> None:
    for number in range(5):
        await declare(first, f"paged-{number}", id_=f"paged-{number}")

    page = await first.ListServices(pb.ListServicesRequest(page_size=2))
    await declare(first, "paged-late", id_="paged-late")
    await first.DeleteService(pb.DeleteServiceRequest(service="paged-4"))
    names = [each.metadata.name for each in page.services]
    revision = page.revision
    while page.next_page_token:
        # The other member continues as well.
        page = await second.ListServices(
            pb.ListServicesRequest(page_size=2, page_token=page.next_page_token)
        )
        assert page.revision == revision
        assert len(page.services) <= 2
        names += [each.metadata.name for each in page.services]

    assert {f"paged-{number}" for number in range(5)} <= set(names)
    assert "paged-late" not in names
    assert len(names) == len(set(names))


async def test_a_page_token_that_is_none_is_refused(first: "Control") -> None:
    forged = (
        b"x y",
        b"1 /estiba/",
        b"1 ",
        b"-1 /estiba/service/a",
        b"%d /estiba/service/a" % 10**30,
    )
    for token in ("nonsense", *(base64.urlsafe_b64encode(each).decode() for each in forged)):
        async with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            await first.ListServices(pb.ListServicesRequest(page_token=token))
        assert refused.message.startswith("page_token: ")


async def test_a_page_of_a_revision_that_is_gone_is_out_of_range(
    plane: ControlPlane, first: "Control"
) -> None:
    for number in range(3):
        await declare(first, f"compacted-{number}")
    page = await first.ListServices(pb.ListServicesRequest(page_size=1))
    await first.ScaleService(pb.ScaleServiceRequest(service="compacted-0", replicas=7))
    store = plane.etcd.store()
    await store.compact(await store.revision())
    await store.close()

    async with Refused(grpc.StatusCode.OUT_OF_RANGE) as refused:
        await first.ListServices(pb.ListServicesRequest(page_token=page.next_page_token))
    assert "list again" in refused.message


async def test_a_watch_resumes_at_another_member_with_none_missing_and_none_twice(
    first: "Control", second: "Control"
) -> None:
    created = await declare(first, "watched")
    request = pb.WatchRequest(service="watched", kinds=[pb.KIND_SERVICE])
    watch = first.Watch(request)
    resume = (await anext(aiter(watch))).revision
    seen: list[int] = []
    for replicas in range(10, 20):
        await second.ScaleService(pb.ScaleServiceRequest(service="watched", replicas=replicas))
        if replicas == 14:
            async with asyncio.timeout(10):
                while not seen or seen[-1] != 14:
                    response = await anext(aiter(watch))
                    resume = response.revision
                    seen += replicas_in(response)
            watch.cancel()

    request.after = resume
    again = second.Watch(request)
    async with asyncio.timeout(10):
        while seen[-1] != 19:
            seen += replicas_in(await anext(aiter(again)))
        await first.DeleteService(pb.DeleteServiceRequest(service=created.metadata.id))
        changes: list[pb.Change] = []
        while not changes:
            changes += (await anext(aiter(again))).changes
    again.cancel()

    assert seen == list(range(10, 20))
    assert changes[-1].type == pb.Change.TYPE_DELETED
    assert changes[-1].service.spec.replicated.replicas == 19


def replicas_in(response: pb.WatchResponse) -> list[int]:
    return [change.service.spec.replicated.replicas for change in response.changes]


async def test_a_watch_from_before_history_is_out_of_range(first: "Control") -> None:
    async with Refused(grpc.StatusCode.OUT_OF_RANGE) as refused:
        async for _ in first.Watch(pb.WatchRequest(after=1)):
            pass
    assert "list again" in refused.message


async def test_a_watch_without_changes_says_how_far_it_has_come(first: "Control") -> None:
    watch = first.Watch(pb.WatchRequest(kinds=[pb.KIND_NODE]))
    async with asyncio.timeout(15):
        begun = await anext(aiter(watch))
        bookmark = await anext(aiter(watch))
    watch.cancel()
    assert not bookmark.changes
    assert bookmark.revision >= begun.revision > 0


async def test_the_cluster_names_its_members_and_one_leader(first: "Control") -> None:
    cluster = await first.GetCluster(pb.GetClusterRequest())
    assert cluster.cluster.name == "test"
    assert cluster.cluster.epoch == 1
    assert [each.id for each in cluster.members] == ["estibad-1", "estibad-2"]
    assert sum(each.leader for each in cluster.members) == 1


async def test_a_task_that_fits_nowhere_says_why(first: "Control") -> None:
    await declare(first, "nowhere", replicas=1)

    async def pending() -> v1.Task:
        while True:
            tasks = (await first.ListTasks(pb.ListTasksRequest(service="nowhere"))).tasks
            if tasks:
                return tasks[0]
            await asyncio.sleep(0.05)

    async with asyncio.timeout(10):
        task = await pending()
    assert not task.node_id
    assert task.metadata.name == "nowhere.1"
    assert task.notes[-1].message.startswith("no suitable node")
