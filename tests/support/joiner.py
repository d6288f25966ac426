"""A machine that wants to become a node: its key, and what it says to the listener for joining."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc import aio

from controlplane.api.channels import CHANNEL_OPTIONS
from estiba.kit import pem
from estiba.kit.jointoken import JoinToken
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS, MEMBER_SERVER_NAME, Role, TlsFiles
from estiba.v1 import certificates_pb2 as pb


class NotAdmittedError(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(f"{status}: {sentence}")
        self.status = status
        self.sentence = sentence


@dataclass(slots=True)
class Joiner:
    """``ca`` is the authority that it has verified."""

    ca: Path
    hostname: str = "machine-1"
    key_pem: bytes = field(
        default_factory=lambda: pem.make_key_and_request(name="", role=Role.NODE)[0], repr=False
    )
    former_pem: bytes = b""

    @property
    def id(self) -> str:
        """The id that its key gives it."""
        return pem.key_id(pem.load_key(self.key_pem).public_key())

    def request(self, token: JoinToken) -> pb.JoinRequest:
        return pb.JoinRequest(
            token_id=token.id,
            token_secret=token.secret,
            request_pem=pem.make_request(self.key_pem, name="", role=Role.NODE),
            hostname=self.hostname,
            former_certificate_pem=self.former_pem,
        )

    async def join(self, address: str, token: JoinToken) -> pb.JoinResponse:
        """Ask to be admitted; raises NotAdmittedError."""
        return await self.send(address, self.request(token))

    async def send(self, address: str, request: pb.JoinRequest) -> pb.JoinResponse:
        status, answer = await self.post(
            address, json=MessageToDict(request, preserving_proto_field_name=True)
        )
        if status != 200:
            raise NotAdmittedError(status, answer["error"])
        return ParseDict(answer, pb.JoinResponse())

    async def post(
        self,
        address: str,
        *,
        json: object = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str]]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session,
            session.post(
                f"https://{address}/v1/join",
                json=json,
                data=data,
                headers=headers,
                ssl=ssl.create_default_context(cafile=str(self.ca)),
                server_hostname=MEMBER_SERVER_NAME,
            ) as response,
        ):
            return response.status, await response.json()

    def files(self, folder: Path, response: pb.JoinResponse) -> TlsFiles:
        """Write certificate and key as a node has them."""
        file = folder / f"{response.node_id}.pem"
        file.write_bytes(response.certificate_pem + self.key_pem)
        return TlsFiles(self.ca, file, file)


@asynccontextmanager
async def channel_of(address: str, tls: TlsFiles) -> AsyncIterator[aio.Channel]:
    """Connect to a member with a certificate that it should accept."""
    options = [*CHANNEL_OPTIONS, *MEMBER_CHANNEL_OPTIONS]
    async with aio.secure_channel(address, tls.channel_credentials(), options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        yield channel
