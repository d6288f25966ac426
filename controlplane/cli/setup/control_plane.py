"""Make this machine a control plane: authorities, certificates, configuration; and keep them good.

Whatever is there already, and good, is left as it is. Nothing here speaks to anybody.
"""

import datetime
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from controlplane.authority import files
from controlplane.authority.issuing import Authority, Holder, OtherRole
from controlplane.cli.errors import CliError
from controlplane.cli.setup import texts
from controlplane.cli.setup.machine import Machine, Owner, all_or_nothing, make_folder
from controlplane.cli.setup.places import (
    API_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    JOIN_PORT,
    WEB_PORT,
    Places,
)
from estiba.kit import pem
from estiba.kit.tls import Role

ANYWHERE = str(IPv4Address(0))
HERE = "127.0.0.1"

PORTS = (
    (ANYWHERE, API_PORT, "estibad"),
    (ANYWHERE, JOIN_PORT, "estibad"),
    (ANYWHERE, WEB_PORT, "estibad"),
    (HERE, ETCD_PORT, "etcd"),
    (HERE, ETCD_PEER_PORT, "etcd"),
)
UNITS = ("estiba-etcd.service", "estibad.service", "estiba-renew.timer")

ESTIBAD_USER = "estiba"
ETCD_USER = "estiba-etcd"
PROMETHEUS_USER = "prometheus"


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate and its key on this machine, and whose file it is."""

    name: str
    path: Path
    holder: Holder
    user: str


def is_initialised(places: Places) -> bool:
    # Written last of all.
    return places.cluster_json.exists()


def held_of_cluster(places: Places, member_id: str) -> tuple[Held, ...]:
    """Return what the cluster's authority has issued to this machine."""
    return (
        Held("member", places.member.cert, Holder(Role.MEMBER, member_id), ESTIBAD_USER),
        Held("admin", places.admin.cert, Holder(Role.USER, "admin"), "root"),
        Held(
            "metrics",
            places.prometheus / "metrics.pem",
            Holder(Role.METRICS, "prometheus"),
            PROMETHEUS_USER,
        ),
    )


def held_of_store(places: Places) -> tuple[Held, ...]:
    """Return what etcd's own authority has issued: no certificate of the cluster opens it."""
    here = (HERE, "localhost")
    etcd = Holder(OtherRole.ETCD, "etcd", names=here)
    client = Holder(OtherRole.ETCD_CLIENT, "estibad")
    return (
        Held("etcd", places.etcd_server.cert, etcd, ETCD_USER),
        Held("etcd-client", places.etcd_client.cert, client, ESTIBAD_USER),
    )


# ------------------------------------------------------------------------------------- from nothing


def initialise(
    machine: Machine, *, address: str, name: str, member_id: str, now: datetime.datetime
) -> None:
    """Have every file of a control plane; if one cannot be made, none is left.

    Raises:
        OSError, ValueError: what is there cannot be read, or the disk refuses.
    """
    places = machine.places
    with all_or_nothing(list(_everything(places))):
        _make_folders(machine)
        authorities = _make_authorities(machine, name, now)
        _ensure(machine, authorities, member_id, now)
        # Whatever is there is of a try that was killed, perhaps with another address.
        text = texts.estibad_toml(_estibad(places, address, name, member_id))
        pem.replace_file(places.estibad_toml, text.encode(), mode=0o644)
        servers = [f"{address}:{API_PORT}"]
        told = texts.cluster_json(name=name, servers=servers, tls=places.admin)
        pem.replace_file(places.cluster_json, told.encode(), mode=0o644)


def _everything(places: Places) -> Iterator[Path]:
    yield from (places.etc, places.prometheus, places.state)
    yield from (places.pki, places.etcd_pki, places.etcd_data)
    for name in ("ca", "etcd-ca"):
        yield from (places.pki / f"{name}.pem", places.pki / f"{name}-key.pem")
    yield from (held.path for held in (*held_of_cluster(places, ""), *held_of_store(places)))
    yield from _copies(places)
    yield from (places.estibad_toml, places.cluster_json)


def _copies(places: Places) -> tuple[Path, ...]:
    """Return where else the cluster's authority is looked for."""
    return places.admin.ca, places.prometheus / "ca.pem"


def _make_folders(machine: Machine) -> None:
    places = machine.places
    for folder in (places.etc, places.prometheus, places.state, places.pki):
        make_folder(folder, mode=0o755)
    make_folder(places.etcd_data, mode=0o700, owner=machine.owner(ETCD_USER))


@dataclass(frozen=True, slots=True)
class _Authorities:
    cluster: Authority
    store: Authority


def _make_authorities(machine: Machine, name: str, now: datetime.datetime) -> _Authorities:
    pki, owner = machine.places.pki, machine.owner(ESTIBAD_USER)
    make = files.open_or_make_authority
    return _Authorities(
        make(pki / "ca.pem", pki / "ca-key.pem", f"estiba {name}", now, owner=owner),
        make(pki / "etcd-ca.pem", pki / "etcd-ca-key.pem", f"estiba {name} etcd", now),
    )


def _ensure(
    machine: Machine,
    authorities: _Authorities,
    member_id: str,
    now: datetime.datetime,
    *,
    force: bool = False,
) -> list[str]:
    """Have good certificates, all in the hands of their users; return the names of new ones."""
    cluster, store, places = authorities.cluster, authorities.store, machine.places
    held = [(cluster, each) for each in held_of_cluster(places, member_id)]
    held += [(store, each) for each in held_of_store(places)]
    # Root writes into it, so nobody else may: a link put there at the right moment would have
    # root give away another file.
    make_folder(places.etcd_pki, mode=0o755, owner=(os.geteuid(), os.getegid()))
    renewed = []
    for authority, each in held:
        owner = machine.owner(each.user)
        if files.ensure_holder(each.path, authority, each.holder, now, owner=owner, force=force):
            renewed.append(each.name)
        give(each.path, owner)
    for path in _copies(places):
        if not path.exists() or path.read_bytes() != cluster.pem:
            pem.replace_file(path, cluster.pem, mode=0o644)
    return renewed


def give(path: Path, owner: Owner) -> None:
    """Have a file be its user's who may have been made, as Prometheus', after the file was."""
    if owner is None:
        return
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        found = os.fstat(file)
        if (found.st_uid, found.st_gid) != owner:
            os.fchown(file, *owner)
    finally:
        os.close(file)


def _estibad(places: Places, address: str, name: str, member_id: str) -> texts.Estibad:
    return texts.Estibad(
        member_id=member_id,
        cluster_name=name,
        listen=f"{ANYWHERE}:{API_PORT}",
        advertise=f"{address}:{API_PORT}",
        web_listen=f"{ANYWHERE}:{WEB_PORT}",
        web_advertise=f"{address}:{WEB_PORT}",
        tls=places.member,
        authority=texts.Authority(
            cert=places.pki / "ca.pem",
            key=places.pki / "ca-key.pem",
            join_listen=f"{ANYWHERE}:{JOIN_PORT}",
            join_advertise=f"{address}:{JOIN_PORT}",
        ),
        etcd_endpoints=(f"{HERE}:{ETCD_PORT}",),
        etcd_tls=places.etcd_client,
    )


# ------------------------------------------------------------------------------------------ renewal


def renew(machine: Machine, now: datetime.datetime, *, force: bool) -> list[str]:
    """Renew what is past half of its life, or everything; return the names of what is new.

    Raises:
        CliError: this machine controls no cluster.
        OSError, ValueError: an authority cannot be read, or the disk refuses.
    """
    places = machine.places
    if not is_initialised(places):
        raise CliError("this machine controls no cluster: `estiba cluster init` makes one")
    pki = places.pki
    authorities = _Authorities(
        files.open_authority(pki / "ca.pem", pki / "ca-key.pem"),
        files.open_authority(pki / "etcd-ca.pem", pki / "etcd-ca-key.pem"),
    )
    return _ensure(machine, authorities, _member_id(places), now, force=force)


def next_renewal(places: Places) -> datetime.datetime:
    """Return when the first of the certificates is due."""
    held = (*held_of_cluster(places, ""), *held_of_store(places))
    lives = [pem.life_of(each.path.read_bytes()) for each in held]
    middle_s = min((life.begins_s + life.ends_s) / 2 for life in lives)
    return datetime.datetime.fromtimestamp(middle_s, datetime.UTC)


def _member_id(places: Places) -> str:
    try:
        return str(tomllib.loads(places.estibad_toml.read_text())["member_id"])
    except (tomllib.TOMLDecodeError, KeyError) as fault:
        raise CliError(f"{places.estibad_toml}: no member_id can be read: {fault}") from fault


# ------------------------------------------------------------------------------------------ by hand


def etcd_command(places: Places) -> list[str]:
    """Return how etcd is started, as its unit does."""
    tls, client = places.etcd_server, f"https://{HERE}:{ETCD_PORT}"
    peer = f"https://{HERE}:{ETCD_PEER_PORT}"
    return [
        "/usr/bin/etcd",
        "--name=estiba",
        f"--data-dir={places.etcd_data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        "--client-cert-auth",
        f"--trusted-ca-file={tls.ca}",
        f"--cert-file={tls.cert}",
        f"--key-file={tls.key}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=estiba={peer}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={tls.ca}",
        f"--peer-cert-file={tls.cert}",
        f"--peer-key-file={tls.key}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=5m",
        "--quota-backend-bytes=8589934592",
        "--logger=zap",
        "--log-level=warn",
    ]
