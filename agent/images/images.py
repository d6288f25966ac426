"""Have images: everything a container needs of one, fetched if it is not here.

Content is found by digest, so what is here is never asked for again. A tag is asked
for each time, at most once in ten seconds; if its registry does not answer, what the
tag meant last time serves.
"""

import asyncio
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ImageError
from agent.images.content import ContentStore
from agent.images.layers import Layers
from agent.images.manifest import (
    Configuration,
    Descriptor,
    ImageConfig,
    Manifest,
    choose,
    parse_configuration,
    parse_manifest,
    platform_of,
    runs_on,
)
from agent.images.merged import Merged
from agent.images.names import Names
from agent.images.progress import Progress
from agent.images.reference import Reference, parse_reference
from agent.images.registry import Repository
from agent.images.tokens import Tokens
from agent.images.transport import Endpoints, Registry, Transport, UnansweredError

TAG_IS_FRESH_S = 10.0
MAX_DOWNLOADS = 3
MAX_CONFIG_BYTES = 4 << 20
MAX_NESTED_LISTS = 3


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here. ``layers`` are unpacked folders, bottom first.

    ``reference`` is its full name. ``pinned`` names exactly this content: to ensure that
    needs no registry while the image is here.
    """

    reference: str
    pinned: str
    digest: str
    layers: tuple[Path, ...]
    config: ImageConfig


class Images:
    """The images of one node, in a folder that nobody else writes to."""

    def __init__(
        self,
        root: Path,
        registries: Mapping[str, Registry],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._platform = platform_of(platform.machine())
        self._endpoints = Endpoints(registries)
        self._tokens = Tokens(monotonic=monotonic)
        self._content = ContentStore(root / "blobs", root / "downloading", random=random.random)
        self._layers = Layers(root / "layers", root / "unpacking")
        self._names = Names(root / "names.json")
        self._monotonic = monotonic
        self._asked: dict[str, float] = {}
        self._downloads = asyncio.Semaphore(MAX_DOWNLOADS)
        self._merged: Merged[str, Image] = Merged()
        self._progress: dict[str, Progress] = {}
        self._prepared: Merged[str, None] = Merged()
        self._is_prepared = False

    async def ensure(
        self, reference: str, *, progress: Callable[[str], None] | None = None
    ) -> Image:
        """Return the image, after fetching what is missing of it.

        ``progress`` is told in a few words, at most once a second, how far that is.

        Raises:
            ImageError: it is not to be had; one sentence that names the image.
        """
        wanted = parse_reference(reference)
        name = str(wanted)
        shown = self._progress.setdefault(name, Progress(self._monotonic))
        try:
            with shown.to(progress):
                await self._prepare()
                return await self._merged.run(name, lambda: self._ensure(wanted, shown))
        except ImageError as error:
            raise ImageError(f"image {name}: {error}") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ImageError(f"image {name}: cannot be stored here: {reason}") from error
        finally:
            if shown.unwatched:
                self._progress.pop(name, None)

    async def _prepare(self) -> None:
        if not self._is_prepared:
            await self._prepared.run("", self._make_folders)

    async def _make_folders(self) -> None:
        def make() -> None:
            self._content.prepare()
            self._layers.prepare()
            self._names.load()

        if not self._is_prepared:
            await asyncio.to_thread(make)
            self._is_prepared = True

    async def _ensure(self, wanted: Reference, progress: Progress) -> Image:
        async with Transport(self._endpoints) as transport:
            repository = Repository(
                transport, self._endpoints, self._tokens, wanted.registry, wanted.repository
            )
            digest = await self._resolve(wanted, repository)
            manifest = await self._manifest(digest, repository)
            configuration = await self._configuration(manifest, repository)
            layers = await self._fetch_layers(manifest, configuration, repository, progress)
        if wanted.tag is not None and wanted.digest is None:
            await asyncio.to_thread(self._names.put, str(wanted), digest)
            self._asked[str(wanted)] = self._monotonic()
        return Image(
            reference=str(wanted),
            pinned=str(wanted.pinned(digest)),
            digest=digest,
            layers=layers,
            config=configuration.config,
        )

    async def _resolve(self, wanted: Reference, repository: Repository) -> str:
        """Return the digest that the reference means."""
        if wanted.digest is not None:
            return wanted.digest
        known = self._names.get(str(wanted))
        asked = self._asked.get(str(wanted))
        now = self._monotonic()
        if known is not None and asked is not None and now - asked < TAG_IS_FRESH_S:
            return known
        try:
            return await repository.digest_of(wanted.tag or "")
        except UnansweredError:
            if known is None:
                raise
            return known

    async def _manifest(self, digest: str, repository: Repository) -> Manifest:
        """Return the manifest for this node's platform, through lists of them."""
        for _ in range(MAX_NESTED_LISTS):
            content = await asyncio.to_thread(self._content.read, digest)
            if content is None:
                content = await repository.manifest(digest)
                await asyncio.to_thread(self._content.add, digest, content)
            parsed = parse_manifest(content)
            if isinstance(parsed, Manifest):
                return parsed
            digest = choose(parsed, self._platform).digest
        raise ImageError("its manifest list leads to another list, and so on")

    async def _configuration(self, manifest: Manifest, repository: Repository) -> Configuration:
        wanted = manifest.config
        content = await asyncio.to_thread(self._content.read, wanted.digest)
        if content is None:
            if wanted.size > MAX_CONFIG_BYTES:
                raise ImageError(f"its configuration is larger than {MAX_CONFIG_BYTES} bytes")
            self._content.forget(wanted.digest)
            path = await self._content.fetch(wanted, repository.blob, lambda _: None)
            content = await asyncio.to_thread(path.read_bytes)
        configuration = parse_configuration(content)
        if not runs_on(configuration.platform, self._platform):
            built = f"it is for {configuration.platform}"
            raise ImageError(f"{built}, and this node is {self._platform}")
        if len(configuration.diff_ids) != len(manifest.layers):
            raise ImageError("its configuration and its manifest disagree about the layers")
        if not configuration.diff_ids:
            raise ImageError("it has no files")
        return configuration

    async def _fetch_layers(
        self,
        manifest: Manifest,
        configuration: Configuration,
        repository: Repository,
        progress: Progress,
    ) -> tuple[Path, ...]:
        missing = {
            diff_id: layer
            for diff_id, layer in zip(configuration.diff_ids, manifest.layers, strict=True)
            if not self._layers.has(diff_id)
        }
        progress.begin(sum(layer.size for layer in missing.values()))
        try:
            async with asyncio.TaskGroup() as group:
                for diff_id, layer in missing.items():
                    group.create_task(
                        self._fetch_layer(diff_id, layer, repository, progress),
                        name=f"images.layer.{diff_id}",
                    )
        except* (ImageError, OSError) as failed:
            first = failed.exceptions[0]
        else:
            return await asyncio.to_thread(self._layers.stack, configuration.diff_ids)
        raise first

    async def _fetch_layer(
        self, diff_id: str, layer: Descriptor, repository: Repository, progress: Progress
    ) -> None:
        async with self._downloads:
            try:
                blob = await self._content.fetch(layer, repository.blob, progress.received)
            except UnansweredError:
                raise
            except ImageError as error:
                raise ImageError(f"layer {error}") from error
        await self._layers.add(diff_id, blob)
        # The folder serves from now on; the archive would only take its space again.
        await asyncio.to_thread(self._content.forget, layer.digest)
