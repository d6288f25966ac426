"""Manifests and configurations as registries serve them, and as strangers might."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ImageError
from agent.images.manifest import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    choose,
    parse_configuration,
    parse_manifest,
    platform_of,
)

AMD64 = Platform("linux", "amd64")


def descriptor(number: int) -> Descriptor:
    return Descriptor("application/vnd.oci.image.manifest.v1+json", f"sha256:{number:064x}", 10)


def index(*platforms: Platform | None) -> Index:
    return Index(tuple((one, descriptor(i)) for i, one in enumerate(platforms)))


def test_the_manifest_for_this_platform_is_chosen() -> None:
    several = index(Platform("linux", "arm64"), Platform("windows", "amd64"), AMD64)

    assert choose(several, AMD64) == descriptor(2)


def test_a_platform_that_is_not_there_is_an_error_that_lists_what_is() -> None:
    several = index(Platform("linux", "arm64", "v8"), Platform("unknown", "unknown"), None)

    with pytest.raises(ImageError) as refused:
        choose(several, AMD64)

    assert str(refused.value) == (
        "no platform linux/amd64 in the manifest list (has linux/arm64/v8)"
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_own_variant_goes_before_none(order: tuple[int, int]) -> None:
    offered = (Platform("linux", "arm64", "v8"), Platform("linux", "arm64"))
    several = index(*(offered[i] for i in order))

    assert choose(several, platform_of("aarch64")) == descriptor(order.index(0))


def test_a_configuration_gives_what_a_container_needs() -> None:
    document: dict[str, object] = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{1:064x}"]},
        "config": {
            "Entrypoint": ["/init"],
            "Cmd": None,
            "Env": ["A=b"],
            "User": "app",
            "WorkingDir": "/srv",
            "StopSignal": "SIGINT",
            "Labels": {"x": "y"},
            "ArgsEscaped": True,
        },
    }

    read = parse_configuration(json.dumps(document).encode())

    assert read.platform == AMD64
    assert read.diff_ids == (f"sha256:{1:064x}",)
    assert read.config == ImageConfig(
        entrypoint=("/init",),
        env=("A=b",),
        user="app",
        workdir="/srv",
        stop_signal="SIGINT",
        labels={"x": "y"},
    )


@pytest.mark.parametrize(
    ("document", "because"),
    [
        (b"<html>", "its manifest is not JSON"),
        (b"[" * 100_000, "its manifest is not JSON"),
        (b"[]", "its manifest is not a JSON object"),
        (b'{"schemaVersion": 1}', "schema version 1, which is no longer supported"),
        (b'{"mediaType": "application/x"}', "is not an image's (its media type is"),
        (b'{"config": 3, "layers": []}', "refers to content in a form that is not known"),
        (b'{"config": {"digest": "sha256:../x", "size": 1}, "layers": []}', "which is no digest"),
        (b'{"manifests": ["x"]}', "'manifests' should hold values of type dict"),
    ],
)
def test_a_bad_manifest_is_one_sentence(document: bytes, because: str) -> None:
    with pytest.raises(ImageError) as refused:
        parse_manifest(document)

    assert because in str(refused.value)


def test_a_size_is_neither_absent_nor_negative_nor_true() -> None:
    for size in (None, -1, True):
        config = {"digest": f"sha256:{1:064x}", "size": size}
        with pytest.raises(ImageError):
            parse_manifest(json.dumps({"config": config, "layers": []}).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["manifests", "config", "layers", "digest", "size", "rootfs", "diff_ids"]),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_json_is_read_or_refused(document: object) -> None:
    content = json.dumps(document).encode()
    for read in (parse_manifest, parse_configuration):
        try:
            result = read(content)
        except ImageError:
            continue
        assert result is not None


def test_docker_and_oci_manifests_are_read_alike() -> None:
    config = {"digest": f"sha256:{1:064x}", "size": 1, "mediaType": "a"}
    manifest = {"schemaVersion": 2, "config": config, "layers": [config]}

    assert parse_manifest(json.dumps(manifest).encode()) == Manifest(
        Descriptor("a", f"sha256:{1:064x}", 1), (Descriptor("a", f"sha256:{1:064x}", 1),)
    )
