"""Make this machine a node of a cluster.

Nothing but a key is written before the cluster has admitted the machine, and if it does not,
nothing is left.
"""

import http.client
import re
import socket
import ssl
import time
import tomllib
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from controlplane.cli.errors import CliError
from controlplane.cli.setup import addresses, joinclient, texts
from controlplane.cli.setup.joinclient import Trusted, UnknownOutcomeError
from controlplane.cli.setup.machine import Machine, all_or_nothing, make_folder, remove
from controlplane.cli.setup.places import CGROUP_PARENT, METRICS_PORT, Places
from estiba.kit import jointoken, pem
from estiba.kit.jointoken import JoinToken
from estiba.kit.tls import AGENT_SERVER_NAME, Role
from estiba.v1 import certificates_pb2 as pb

ANYWHERE = str(IPv4Address(0))
LOOPBACK = "127."
PORTS = ((ANYWHERE, METRICS_PORT, "estiba-agent"),)
# In this order: launcher and log pump look for each other, the agent for both.
UNITS = (
    "estiba-containers.service",
    "estiba-log-pump.service",
    "estiba-launcher.service",
    "estiba-agent.service",
)
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
SESSION_WITHIN_S = 120.0
LOOK_EVERY_S = 0.2

_CERTIFICATE = re.compile(b"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Wanted:
    token: JoinToken
    address: joinclient.Address
    advertise: str
    """An address, or the name of a link; "": whichever leads to the control plane."""
    hostname: str


@dataclass(frozen=True, slots=True)
class Joined:
    node_id: str
    cluster_name: str


def is_joined(places: Places, token: JoinToken, now_s: float) -> bool:
    """Say whether this machine is a node of the token's cluster, with a certificate that is good.

    Raises:
        CliError: it is a node of another cluster.
    """
    if not (places.agent_toml.exists() and places.node.cert.exists()):
        return False
    authority = ssl.PEM_cert_to_DER_cert(places.node.ca.read_text().strip())
    if jointoken.digest_of(authority) != token.digest:
        raise CliError(
            "this machine is a node of another cluster already: `estiba node leave` ends that, "
            "and stops its containers"
        )
    return pem.life_of(places.node.cert.read_bytes()).remaining_s(now_s) > 0


def join(machine: Machine, wanted: Wanted) -> Joined:
    """Be admitted, and write what the programs of a node need.

    Raises:
        CliError: not admitted; nothing is left of the attempt.
        UnknownOutcomeError: perhaps admitted: the next attempt will be the same node.
        OSError: the disk refuses.
    """
    places = machine.places
    trusted = joinclient.meet(wanted.address, wanted.token)
    advertise = _advertise(machine, wanted, trusted)
    key, former = _key(places)
    request = pb.JoinRequest(
        token_id=wanted.token.id,
        token_secret=wanted.token.secret,
        request_pem=pem.make_request(key, name="", role=Role.NODE, hostname=wanted.hostname),
        hostname=wanted.hostname,
        former_certificate_pem=former,
    )
    try:
        response = joinclient.join(trusted, request)
    except UnknownOutcomeError as lost:
        raise UnknownOutcomeError(
            f"{lost}; this machine may have been admitted: type it again, it is the same node then"
        ) from lost
    except CliError:
        remove(places.joining_key)
        remove(places.agent_pki)
        raise
    _write(machine, response, key, wanted.hostname, advertise)
    remove(places.joining_key)
    return Joined(response.node_id, response.cluster_name)


def _advertise(machine: Machine, wanted: Wanted, trusted: Trusted) -> str:
    if not wanted.advertise and not trusted.our_address.startswith(LOOPBACK):
        return trusted.our_address
    return addresses.choose(machine.addresses(), wanted.advertise)


def _key(places: Places) -> tuple[bytes, bytes]:
    """Return the key to join with, and the certificate that it had before, b"" if none.

    With the key that it had a machine stays the node that it was. A new one is on disk before
    the cluster hears of it.
    """
    if places.node.cert.exists():
        text = places.node.cert.read_bytes()
        found = _CERTIFICATE.search(text)
        return text, found[0] if found else b""
    if places.joining_key.exists():
        return places.joining_key.read_bytes(), b""
    make_folder(places.agent_pki, mode=0o700)
    key, _ = pem.make_key_and_request(name="", role=Role.NODE)
    pem.replace_file(places.joining_key, key)
    return key, b""


def _write(
    machine: Machine, response: pb.JoinResponse, key: bytes, hostname: str, advertise: str
) -> None:
    places = machine.places
    certificate = response.certificate_pem + pem.key_text(pem.load_key(key))
    is_known = places.agent_toml.exists() and _node_id(places) == response.node_id
    with all_or_nothing([places.etc, places.node.cert, places.node.ca, places.agent_toml]):
        make_folder(places.etc, mode=0o755)
        make_folder(places.agent_pki, mode=0o700)
        pem.replace_file(places.node.cert, certificate)
        pem.replace_file(places.node.ca, response.authority_pem, mode=0o644)
        if not is_known:
            text = texts.agent_toml(_agent(places, response, hostname, advertise))
            pem.replace_file(places.agent_toml, text.encode(), mode=0o644)


def _agent(places: Places, response: pb.JoinResponse, hostname: str, advertise: str) -> texts.Agent:
    return texts.Agent(
        node_id=response.node_id,
        hostname=hostname,
        members=tuple(response.member_addresses),
        state_dir=places.agent_state,
        launcher_socket=places.launcher_socket,
        cgroup_parent=CGROUP_PARENT,
        address=advertise,
        metrics_listen=f"{ANYWHERE}:{METRICS_PORT}",
        metrics_advertise=f"{advertise}:{METRICS_PORT}",
        nameservers=_nameservers(),
        tls=places.node,
    )


def _node_id(places: Places) -> str:
    try:
        return str(tomllib.loads(places.agent_toml.read_text())["node_id"])
    except (tomllib.TOMLDecodeError, KeyError) as fault:
        raise CliError(f"{places.agent_toml}: no node_id can be read: {fault}") from fault


def _nameservers() -> tuple[str, ...]:
    """Return whom containers ask for names: the machine's own, unless it asks itself."""
    for path in RESOLVERS:
        found = texts.nameservers(path.read_text()) if path.exists() else ()
        if found:
            return found
    return ()


# ------------------------------------------------------------------------------------ its session


def wait_for_session(places: Places, *, within_s: float = SESSION_WITHIN_S) -> None:
    """Return once a member serves this node.

    Raises:
        CliError: none does; in the agent's words.
    """
    deadline = time.monotonic() + within_s
    while fault := session_fault(places):
        if time.monotonic() > deadline:
            raise CliError(
                f"this machine was admitted, and after {within_s:g} s {fault}: "
                "see `journalctl -u estiba-agent`"
            )
        time.sleep(LOOK_EVERY_S)


def session_fault(places: Places) -> str:
    """Ask the agent whether a member serves this node; return why not, or ""."""
    context = ssl.create_default_context(cafile=str(places.node.ca))
    context.load_cert_chain(places.node.cert)
    try:
        with (
            closing(
                socket.create_connection((f"{LOOPBACK}0.0.1", METRICS_PORT), timeout=5)
            ) as link,
            closing(context.wrap_socket(link, server_hostname=AGENT_SERVER_NAME)) as secured,
        ):
            asking = http.client.HTTPConnection("agent")
            asking.sock = secured
            asking.request("GET", "/healthz")
            answer = asking.getresponse()
            said = answer.read(1000).decode(errors="replace").strip()
            return "" if answer.status == http.HTTPStatus.OK else said
    except (OSError, http.client.HTTPException) as fault:
        return f"its agent does not answer: {fault}"
