"""What an update replaces, and what it leaves alone."""

from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from controlplane.api.merging import replace_known
from estiba.v1 import types_pb2 as v1

# Field 900, a string: what a version newer than this one might have stored.
NEWER = b"\xa2\x38\x05hello"
NEWER_STILL = b"\xa2\x38\x05world"

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5)
checks = st.one_of(
    st.builds(lambda port: v1.HealthCheck(tcp=v1.TcpCheck(port=port)), st.integers(0, 99)),
    st.builds(
        lambda words: v1.HealthCheck(exec=v1.ExecCheck(command=words), retries=2),
        st.lists(texts, max_size=2),
    ),
    st.just(v1.HealthCheck()),
    st.none(),
)
specs = st.builds(
    lambda image, env, labels, health, replicas: v1.ServiceSpec(
        template=v1.TaskTemplate(
            container=v1.ContainerSpec(image=image, env=env, labels=labels, health=health)
        ),
        replicated=None if replicas is None else v1.Replicated(replicas=replicas),
    ),
    texts,
    st.lists(texts, max_size=3),
    st.dictionaries(texts, texts, max_size=3),
    checks,
    st.none() | st.integers(0, 9),
)


@given(specs, specs)
def test_known_fields_are_what_the_caller_wants(
    stored: v1.ServiceSpec, wanted: v1.ServiceSpec
) -> None:
    replace_known(stored, wanted)
    assert stored == wanted


@given(specs, specs)
def test_unknown_fields_stay_where_their_message_stays(
    stored: v1.ServiceSpec, wanted: v1.ServiceSpec
) -> None:
    stored.MergeFromString(NEWER)
    stored.template.container.MergeFromString(NEWER)

    replace_known(stored, wanted)

    assert unknown(stored) == [b"hello"]
    if wanted.template.HasField("container"):
        assert unknown(stored.template.container) == [b"hello"]
    stored.DiscardUnknownFields()
    assert stored == wanted


def test_unknown_fields_that_the_caller_brings_replace_those_stored() -> None:
    stored, wanted = v1.ContainerSpec(), v1.ContainerSpec(image="new")
    stored.MergeFromString(NEWER)
    wanted.MergeFromString(NEWER_STILL)

    replace_known(stored, wanted)

    assert unknown(stored) == [b"world"]
    assert stored.image == "new"


def unknown(message: v1.ServiceSpec | v1.ContainerSpec) -> list[bytes]:
    fields = UnknownFieldSet(message)
    return [fields[index].data for index in range(len(fields))]
