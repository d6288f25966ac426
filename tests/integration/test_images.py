"""Images from a real registry: with TLS, with tokens, broken, lying, gone."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import ImageError
from agent.images import Image, Images, Registry
from tests.support.oci import (
    BuiltImage,
    file,
    folder,
    image,
    layer,
    manifest_list,
    opaque,
    push,
    whiteout,
)
from tests.support.registry import Authority, RunningRegistry, free_port, run_registry
from tests.support.registry_front import Front, run_front
from tests.support.waiting import eventually


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def registry(tmp_path: Path, authority: Authority) -> AsyncIterator[RunningRegistry]:
    """A registry that speaks TLS under a name that only the configuration resolves."""
    async with run_registry(tmp_path / "registry", authority) as running:
        yield running


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A server on loopback, without TLS, in front of a registry of its own."""
    async with run_registry(tmp_path / "behind", None) as behind, run_front(behind) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def images(root: Path, registry: RunningRegistry) -> Images:
    return Images(root, registry.registries)


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def hello(content: bytes = b"hello") -> BuiltImage:
    return image(layer(file("hello", content)), config={"Cmd": ["/hello"]})


def large() -> BuiltImage:
    return image(layer(file("large", os.urandom(3 << 20)), compression="none"))


async def refusal(images: Images, reference: str) -> str:
    with pytest.raises(ImageError) as refused:
        await images.ensure(reference)
    sentence = str(refused.value)
    assert sentence.startswith("image ")
    assert "\n" not in sentence
    return sentence


async def pushed(front: Front, name: str, built: BuiltImage, *, tag: str = "latest") -> str:
    """Push to the registry behind the front, and return the name in front."""
    written = await push(front.behind, name, built, tag=tag)
    return written.replace(front.behind.name, front.name)


def half_made(root: Path) -> list[Path]:
    """List what no finished or failed pull may leave."""
    return [*(root / "unpacking").iterdir(), *(root / "layers").glob("*/*")]


def look_through(image: Image, scratch: Path, script: str) -> str:
    """Run a shell script in an overlay of the image's layers, mounted in a namespace of its own."""
    for name in ("upper", "work", "merged"):
        (scratch / name).mkdir(parents=True)
    lower = ":".join(str(path) for path in reversed(image.layers))
    options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    mount = f"mount -t overlay overlay -o '{options}' '{scratch}/merged' && cd '{scratch}/merged'"
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", f"{mount}\n{script}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


# ---------------------------------------------------------------- what is there


async def test_an_image_is_fetched_with_its_configuration(
    images: Images, registry: RunningRegistry
) -> None:
    built = hello()
    name = await push(registry, "team/hello", built)
    told: list[str] = []

    found = await images.ensure(name, progress=told.append)

    assert found.reference == name
    assert found.digest == built.manifest.digest
    assert found.config.command == ("/hello",)
    assert [(path / "hello").read_bytes() for path in found.layers] == [b"hello"]
    assert told[0].startswith("pulling the image: 0.0 of ")


async def test_layers_are_shared_between_images_and_their_archives_are_not_kept(
    images: Images, registry: RunningRegistry, root: Path
) -> None:
    base = layer(file("base", b"base"))
    one = await push(registry, "one", image(base, layer(file("one"))))
    two = await push(registry, "two", image(base, layer(file("two"))))

    first, second = await asyncio.gather(images.ensure(one), images.ensure(two))

    assert first.layers[0] == second.layers[0]
    assert len(list((root / "layers/sha256").iterdir())) == 3
    archived = {base.blob().digest.removeprefix("sha256:")}
    assert archived.isdisjoint(path.name for path in (root / "blobs/sha256").iterdir())


async def test_whiteouts_hide_files_and_folders_of_lower_layers(
    images: Images, registry: RunningRegistry, tmp_path: Path
) -> None:
    built = image(
        layer(
            *(folder("d"), file("d/kept", b"1"), file("d/gone", b"2")),
            *(folder("e"), file("e/old", b"3"), folder("f"), file("f/old", b"4")),
            *(folder("g"), file("g/old", b"5"), file("top", b"6")),
        ),
        layer(
            *(folder("d"), whiteout("d/gone"), folder("e"), opaque("e"), file("e/new", b"7")),
            *(whiteout("f"), whiteout("g"), folder("g"), whiteout("top")),
        ),
        layer(file("top", b"back")),
    )
    found = await images.ensure(await push(registry, "hiding", built))

    seen = look_through(found, tmp_path / "overlay", "find . -type f | sort; cat top")

    assert seen.split() == ["./d/kept", "./e/new", "./top", "back"]


async def test_folders_that_a_layer_does_not_describe_keep_the_attributes_of_lower_layers(
    images: Images, registry: RunningRegistry, tmp_path: Path
) -> None:
    built = image(
        layer(
            *(folder("tmp", mode=0o1777), folder("home", mode=0o711)),
            *(folder("home/app", mode=0o700, uid=1000, gid=1001), folder("old", mode=0o700)),
        ),
        layer(file("tmp/x"), file("home/app/y"), whiteout("old")),
        layer(file("old/new"), file("new/z")),
    )
    found = await images.ensure(await push(registry, "sparse", built))

    seen = look_through(
        found, tmp_path / "overlay", "stat -c '%n %a %u:%g' tmp home home/app old new; find -type f"
    )

    assert seen.splitlines()[:5] == [
        "tmp 1777 0:0",
        "home 711 0:0",
        "home/app 700 1000:1001",
        "old 755 0:0",
        "new 755 0:0",
    ]
    assert sorted(seen.splitlines()[5:]) == ["./home/app/y", "./new/z", "./old/new", "./tmp/x"]


async def test_a_layer_that_comes_twice_is_stacked_once(
    images: Images, registry: RunningRegistry, tmp_path: Path
) -> None:
    twice = layer(file("a", b"first"))
    between = layer(file("a", b"second"), file("b", b"b"))
    found = await images.ensure(await push(registry, "twice", image(twice, between, twice)))

    assert look_through(found, tmp_path / "overlay", "cat a b") == "firstb"


async def test_the_manifest_of_this_platform_is_taken_from_a_list(
    images: Images, registry: RunningRegistry
) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    ours = image(layer(file("ours")), platform=f"linux/{machine}")
    theirs = image(layer(file("theirs")), platform="linux/s390x")
    both = manifest_list(("linux/s390x", theirs), (f"linux/{machine}", ours))

    found = await images.ensure(await push(registry, "both", both))

    assert (found.layers[0] / "ours").exists()
    assert found.digest == both.manifest.digest


async def test_a_registry_on_loopback_may_go_without_tls(root: Path, front: Front) -> None:
    name = await pushed(front, "hello", hello())

    found = await Images(root, {}).ensure(name)

    assert (found.layers[0] / "hello").read_bytes() == b"hello"


# ---------------------------------------------------------------- asking, and not asking


async def test_a_tag_is_asked_for_once_in_ten_seconds(root: Path, front: Front) -> None:
    clock = Hand()
    images = Images(root, {}, monotonic=clock)
    name = await pushed(front, "hello", hello())
    await asyncio.gather(*(images.ensure(name) for _ in range(50)))
    await images.ensure(name)
    assert front.count("HEAD", "manifests") == 1
    assert front.count("GET", "manifests") == 1

    clock.now += 11
    await images.ensure(name)

    assert front.count("HEAD", "manifests") == 2
    assert front.count("GET", "manifests") == 1
    assert front.count("GET", "blobs") == 2


async def test_a_tag_that_moved_is_followed(root: Path, front: Front) -> None:
    clock = Hand()
    images = Images(root, {}, monotonic=clock)
    await images.ensure(await pushed(front, "hello", hello(b"old")))
    name = await pushed(front, "hello", hello(b"new"))

    clock.now += 11
    found = await images.ensure(name)

    assert (found.layers[0] / "hello").read_bytes() == b"new"


async def test_a_registry_that_does_not_tell_digests_is_asked_for_the_manifest(
    root: Path, front: Front
) -> None:
    front.keeps_digests_to_itself = True
    built = hello()

    found = await Images(root, {}).ensure(await pushed(front, "hello", built))

    assert found.digest == built.manifest.digest


async def test_what_is_here_by_digest_is_never_asked_for(root: Path, front: Front) -> None:
    first = await Images(root, {}).ensure(await pushed(front, "hello", hello()))
    front.requests.clear()

    again = await Images(root, {}).ensure(first.pinned)

    assert again.layers == first.layers
    assert front.requests == []


@pytest.mark.parametrize("failure", ["connection", "status"])
async def test_what_a_tag_meant_last_serves_while_its_registry_is_down(
    root: Path, tmp_path: Path, failure: str
) -> None:
    async with run_registry(tmp_path / "r", None) as behind, run_front(behind) as front:
        name = await pushed(front, "hello", hello())
        first = await Images(root, {}).ensure(name)
        if failure == "status":
            front.answers_status = 503
            assert await Images(root, {}).ensure(name) == first
    if failure == "connection":
        assert await Images(root, {}).ensure(name) == first


async def test_an_anonymous_token_is_fetched_once_where_the_registry_wants_one(
    root: Path, front: Front
) -> None:
    front.wants_tokens = True
    built = image(*(layer(file(f"f{i}")) for i in range(4)))
    images = Images(root, {})

    await images.ensure(await pushed(front, "team/hello", built))

    assert front.token_requests == [{"service": "tests", "scope": "repository:team/hello:pull"}]


async def test_a_token_is_not_sent_to_where_a_registry_redirects(root: Path, front: Front) -> None:
    async with run_front(front.behind) as elsewhere:
        front.wants_tokens = True
        front.redirects_blobs_to = f"http://{elsewhere.name}"

        await Images(root, {}).ensure(await pushed(front, "hello", hello()))

        assert [path.split("/")[1] for _, path in elsewhere.requests] == ["elsewhere"] * 2
        assert elsewhere.leaked == []


# ---------------------------------------------------------------- broken downloads


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_a_download_that_breaks_off_goes_on(
    root: Path, front: Front, ignores_ranges: bool
) -> None:
    front.cut_after_bytes, front.cuts_left = 1 << 20, 1
    front.ignores_ranges = ignores_ranges
    built = large()

    found = await Images(root, {}).ensure(await pushed(front, "large", built))

    assert (found.layers[0] / "large").stat().st_size == 3 << 20
    assert front.ranges == [f"bytes={1 << 20}-"]


async def test_a_download_that_keeps_breaking_off_is_one_sentence_and_goes_on_next_time(
    root: Path, front: Front
) -> None:
    front.cut_after_bytes, front.cuts_left = 0, 100
    name = await pushed(front, "large", large())
    sentence = await refusal(Images(root, {}), name)
    assert sentence == (
        f"image {name}: registry {front.name} does not answer: the connection broke"
    )
    assert half_made(root) == []

    front.cuts_left = 0
    found = await Images(root, {}).ensure(name)

    assert (found.layers[0] / "large").stat().st_size == 3 << 20


async def test_a_cancelled_pull_goes_on_where_it_was(root: Path, front: Front) -> None:
    name = await pushed(front, "large", large())
    front.holds_after_bytes = 1 << 20
    images = Images(root, {})
    pull = asyncio.create_task(images.ensure(name), name="pull")
    await asyncio.to_thread(
        eventually,
        lambda: any(path.stat().st_size >= 1 << 20 for path in root.glob("downloading/*")),
        within_s=10,
        what="the first mebibyte on disk",
    )
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert half_made(root) == []

    front.holds_after_bytes = 0
    front.may_go_on.set()
    await images.ensure(name)

    assert front.ranges == [f"bytes={1 << 20}-"]


# ---------------------------------------------------------------- what goes wrong


async def test_an_image_that_is_not_there_is_named(
    images: Images, registry: RunningRegistry
) -> None:
    await push(registry, "hello", hello())

    for name in ("nope", "hello:nope"):
        full = f"{registry.name}/{name}" + ("" if ":" in name else ":latest")
        assert await refusal(images, full) == f"image {full}: not found in the registry"


async def test_a_registry_that_is_down_is_named(root: Path) -> None:
    name = f"registry.estiba:{free_port()}"
    images = Images(root, {name: Registry(f"127.0.0.1:{free_port()}")})

    assert await refusal(images, f"{name}/hello") == (
        f"image {name}/hello:latest: registry {name} does not answer: connection refused"
    )


async def test_a_registry_whose_authority_is_not_trusted_is_refused(
    root: Path, registry: RunningRegistry, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    images = Images(root, {registry.name: Registry(registry.address, other.ca)})

    sentence = await refusal(images, f"{registry.name}/hello")

    assert f"registry {registry.name} shows a certificate not trusted: " in sentence


async def test_a_registry_under_another_name_than_its_certificates_is_refused(
    root: Path, registry: RunningRegistry
) -> None:
    images = Images(root, {"other.estiba": Registry(registry.address, registry.ca)})

    sentence = await refusal(images, "other.estiba/hello")

    assert "registry other.estiba shows a certificate not trusted: Hostname mismatch" in sentence


async def test_an_authority_that_cannot_be_read_is_named(root: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    images = Images(root, {"registry.estiba:5000": Registry("127.0.0.1:1", missing)})

    sentence = await refusal(images, "registry.estiba:5000/hello")

    assert f"the authority in {missing} cannot be read: No such file or directory" in sentence


async def test_a_layer_whose_digest_does_not_match_is_named_and_nothing_is_left(
    images: Images, registry: RunningRegistry, root: Path
) -> None:
    built = hello()
    name = await push(registry, "hello", built)
    stored = registry.blob_file(built.blobs[1].digest)
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    sentence = await refusal(images, name)

    promised = built.blobs[1].digest
    assert sentence.startswith(f"image {name}: layer {promised}: content has digest sha256:")
    assert half_made(root) == []
    assert list((root / "downloading").iterdir()) == []
    stored.write_bytes(content)
    await images.ensure(name)


async def test_a_layer_longer_than_promised_is_refused(
    images: Images, registry: RunningRegistry, root: Path
) -> None:
    built = hello()
    name = await push(registry, "hello", built)
    stored = registry.blob_file(built.blobs[1].digest)
    stored.write_bytes(stored.read_bytes() + b"more")

    assert "layer sha256:" in await refusal(images, name)
    assert half_made(root) == []


async def test_a_configuration_that_lies_about_a_layer_is_refused(
    images: Images, registry: RunningRegistry, root: Path
) -> None:
    honest, other = layer(file("f")), layer(file("g"))
    name = await push(registry, "liar", image(honest, diff_ids=[other.diff_id]))

    assert await refusal(images, name) == (
        f"image {name}: layer {other.diff_id}: unpacked, its content has digest {honest.diff_id}"
    )
    assert half_made(root) == []


@pytest.mark.parametrize(
    ("built", "because"),
    [
        (
            manifest_list(("linux/s390x", image(layer(file("f")), platform="linux/s390x"))),
            "in the manifest list (has linux/s390x)",
        ),
        (image(layer(file("f")), platform="linux/s390x"), "it is for linux/s390x, and this node"),
        (image(layer(file("f")), diff_ids=[layer().diff_id] * 2), "disagree about the layers"),
        (image(), "it has no files"),
    ],
)
async def test_an_image_that_cannot_run_here_says_why(
    images: Images, registry: RunningRegistry, built: BuiltImage, because: str
) -> None:
    name = await push(registry, "other", built)

    assert because in await refusal(images, name)


async def test_a_registry_that_wants_a_password_is_refused(root: Path, front: Front) -> None:
    front.answers_status, front.challenge = 401, 'Basic realm="x"'

    sentence = await refusal(Images(root, {}), f"{front.name}/hello")

    assert f"registry {front.name} wants a user and a password" in sentence


async def test_a_token_never_stands_in_an_error(root: Path, front: Front) -> None:
    front.wants_tokens = True
    name = await pushed(front, "hello", hello())
    images = Images(root, {})
    await images.ensure(name)

    sentence = await refusal(images, name.replace("latest", "other"))

    assert front.tokens
    assert not any(token in sentence for token in front.tokens)


async def test_a_registry_elsewhere_is_never_spoken_to_without_tls(
    root: Path, front: Front
) -> None:
    name = "registry.estiba:5000"
    images = Images(root, {name: Registry(front.name)})

    sentence = await refusal(images, f"{name}/hello")

    assert f"registry {name} does not speak TLS as it should" in sentence
    assert front.requests == []


async def test_a_redirect_to_where_there_is_no_tls_is_refused(root: Path, front: Front) -> None:
    front.redirects_blobs_to = "http://registry.estiba:1"

    sentence = await refusal(Images(root, {}), await pushed(front, "hello", hello()))

    assert "redirects to where there is no TLS" in sentence


async def test_a_name_without_a_registry_says_how_to_configure_one(root: Path) -> None:
    sentence = await refusal(Images(root, {}), "web")

    assert sentence == (
        "image docker.io/library/web:latest: registry docker.io, which names without a registry "
        "mean, has no address on this node: "
        'set it in [registries."docker.io"] of the agent\'s configuration'
    )


async def test_a_short_name_comes_from_the_configured_registry(
    root: Path, registry: RunningRegistry, authority: Authority, tmp_path: Path
) -> None:
    async with run_registry(tmp_path / "hub", authority, host="docker.io") as hub:
        await push(hub, "library/web", hello())
        images = Images(root, {"docker.io": Registry(hub.address, hub.ca)})

        found = await images.ensure("web")

    assert found.reference == "docker.io/library/web:latest"


async def test_an_address_that_is_a_name_takes_the_registrys_place(
    root: Path, authority: Authority, tmp_path: Path
) -> None:
    async with run_registry(tmp_path / "mirror", authority, host="localhost") as mirror:
        await push(mirror, "library/web", hello())
        images = Images(root, {"docker.io": Registry(mirror.name, mirror.ca)})

        found = await images.ensure("web")

    assert found.reference == "docker.io/library/web:latest"


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "{"])
async def test_a_damaged_list_of_names_costs_nothing_but_a_question(
    root: Path, front: Front, content: str
) -> None:
    name = await pushed(front, "hello", hello())
    await Images(root, {}).ensure(name)
    (root / "names.json").write_text(content)

    assert (await Images(root, {}).ensure(name)).reference == name


async def test_damaged_content_on_disk_is_fetched_again(
    images: Images, registry: RunningRegistry, root: Path
) -> None:
    built = hello()
    name = await push(registry, "hello", built)
    await images.ensure(name)
    for blob in (built.manifest, built.blobs[0]):
        (root / "blobs/sha256" / blob.digest.removeprefix("sha256:")).write_bytes(b"damaged")

    found = await Images(root, registry.registries).ensure(name)

    assert found.config.command == ("/hello",)
