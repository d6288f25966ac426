"""Image references: what Docker would make of them, and that nothing else gets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ImageError
from agent.images.reference import Reference, is_digest, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
registries = st.builds(
    lambda parts, port: ".".join(parts) + (f":{port}" if port else ""),
    st.lists(labels, min_size=2, max_size=4),
    st.none() | st.integers(1, 65535),
)
components = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("web", "docker.io/library/web:latest"),
        ("web:1.2", "docker.io/library/web:1.2"),
        ("team/web", "docker.io/team/web:latest"),
        ("docker.io/web", "docker.io/library/web:latest"),
        ("localhost/web", "localhost/web:latest"),
        ("localhost:5000/web", "localhost:5000/web:latest"),
        ("registry.estiba:5000/hello", "registry.estiba:5000/hello:latest"),
        ("registry.estiba:5000/a/b/c:v1", "registry.estiba:5000/a/b/c:v1"),
        ("Registry/web", "Registry/web:latest"),
        ("[::1]:5000/web", "[::1]:5000/web:latest"),
        ("127.0.0.1:5000/web", "127.0.0.1:5000/web:latest"),
        (f"web@{DIGEST}", f"docker.io/library/web@{DIGEST}"),
        (f"web:1@{DIGEST}", f"docker.io/library/web:1@{DIGEST}"),
    ],
)
def test_a_name_is_expanded_as_docker_does(written: str, meant: str) -> None:
    assert str(parse_reference(written)) == meant


@pytest.mark.parametrize(
    ("written", "because"),
    [
        ("", "'library/' is not a repository's name"),
        ("Web", "'library/Web' is not a repository's name (names are in small letters)"),
        ("web:", "'' is not a tag"),
        ("web:-x", "'-x' is not a tag"),
        ("web:" + "x" * 129, "is not a tag"),
        ("web@sha256:12", "'sha256:12' is not a digest"),
        ("web@", "'' is not a digest"),
        ("-x.example/web", "'-x.example' is not a registry's name"),
        ("registry.estiba:5000/", "'' is not a repository's name"),
        ("registry.estiba:5000/../web", "'../web' is not a repository's name"),
        ("https://registry.estiba/web", "'https:' is not a registry's name"),
        ("a//b", "'a//b' is not a repository's name"),
        ("web latest", "'library/web latest' is not a repository's name"),
        ("0123456789abcdef" * 4, "an image's id is not a name that can be fetched"),
        ("x/" + "y" * 255, "longer than 255 characters"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_part_that_is_wrong(
    written: str, because: str
) -> None:
    with pytest.raises(ImageError) as refused:
        parse_reference(written)

    assert str(refused.value).startswith(f"image {written!r}: ")
    assert because in str(refused.value)


@given(registries, repositories, st.none() | tags, st.none() | digests)
def test_a_full_reference_keeps_every_part(
    registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    written = Reference(registry, repository, tag, digest)

    read = parse_reference(str(written))

    expected = "latest" if tag is None and digest is None else tag
    assert read == Reference(registry, repository, expected, digest)


@given(st.text(max_size=80) | st.from_regex(r"[a-zA-Z0-9.:/@_-]{0,60}", fullmatch=True))
def test_any_text_is_refused_or_means_the_same_when_written_out(text: str) -> None:
    try:
        read = parse_reference(text)
    except ImageError:
        return
    assert parse_reference(str(read)) == read
    assert ".." not in read.repository.split("/")
    assert read.tag is not None or read.digest is not None


@given(digests)
def test_a_pinned_reference_has_the_digest_alone(digest: str) -> None:
    pinned = parse_reference("web:1").pinned(digest)

    assert str(pinned) == f"docker.io/library/web@{digest}"


@pytest.mark.parametrize("text", ["sha256:../../etc/passwd", "md5:" + "0" * 32, DIGEST.upper()])
def test_what_cannot_be_verified_or_leaves_a_folder_is_no_digest(text: str) -> None:
    assert not is_digest(text)
