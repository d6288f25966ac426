"""The folder of a local cluster, and the certificates in it."""

import datetime
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.cli.dev import authority, plan, state
from controlplane.cli.errors import CliError
from estiba.kit.tls import Role, identity_of

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def certificate(of: plan.Layout, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(of.pem(name).read_bytes())


def test_a_cluster_is_decided_once(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None
    made = state.make(tmp_path, 2)
    assert state.load(tmp_path) == made
    assert [seat.hostname for seat in made.seats] == ["n1", "n2"]


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CliError, match=r"thesis\.tex"):
        state.make(tmp_path, 1)


def test_removing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    with state.locked(folder):
        state.make(folder, 1)
        (folder / "nodes" / "n1").mkdir(parents=True)
        (folder / "thesis.tex").touch()
        state.remove(folder, keep=False)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_removing_everything_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    with state.locked(folder):
        state.make(folder, 1)
        state.remove(folder, keep=False)
    assert not folder.exists()


def test_keeping_keeps_what_was_decided(tmp_path: Path) -> None:
    with state.locked(tmp_path):
        made = state.make(tmp_path, 1)
        (tmp_path / "cluster.json").write_text("{}")
        state.remove(tmp_path, keep=True)
    assert state.load(tmp_path) == made
    assert not (tmp_path / "cluster.json").exists()


def test_whoever_waits_for_a_folder_that_is_removed_meanwhile_gets_a_new_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "dev"
    found: list[bool] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with state.locked(folder):
            found.append((folder / "lock").exists())

    with state.locked(folder):
        waiting = threading.Thread(target=second)
        waiting.start()
        begun.wait()
        state.remove(folder, keep=False)
    waiting.join()
    assert found == [True]


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="shorter"):
        state.resolve(tmp_path / ("x" * 80))


def test_every_holder_gets_a_certificate_that_says_who_it_is(tmp_path: Path) -> None:
    made = state.make(tmp_path, 2)
    authority.issue_all(made, NOW)
    for name, role, holder in (
        ("n2", Role.NODE, made.seats[1].id),
        ("estibad-1", Role.MEMBER, "estibad-1"),
        ("user", Role.USER, "admin"),
        ("metrics", Role.METRICS, "prometheus"),
    ):
        identity = identity_of(made.pem(name).read_bytes())
        assert (identity.role, identity.name) == (role, holder)
    with pytest.raises(ValueError, match="registry"):
        identity_of(made.pem("registry").read_bytes())


def test_certificates_of_the_cluster_do_not_verify_against_the_stores_authority(
    tmp_path: Path,
) -> None:
    made = state.make(tmp_path, 1)
    authority.issue_all(made, NOW)
    cluster, store = certificate(made, "ca"), certificate(made, "etcd-ca")
    for name in ("n1", "user", "estibad-1", "metrics", "registry"):
        certificate(made, name).verify_directly_issued_by(cluster)
        with pytest.raises(ValueError, match="Issuer"):
            certificate(made, name).verify_directly_issued_by(store)
    for name in ("etcd", "etcd-client"):
        certificate(made, name).verify_directly_issued_by(store)


def test_a_users_certificate_serves_nobody(tmp_path: Path) -> None:
    made = state.make(tmp_path, 1)
    authority.issue_all(made, NOW)
    usage = certificate(made, "user").extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_keys_are_for_root_alone(tmp_path: Path) -> None:
    made = state.make(tmp_path, 1)
    authority.issue_all(made, NOW)
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    authorities = {made.pem("ca"), made.pem("etcd-ca")}
    for path in set((tmp_path / "pki").iterdir()) - authorities:
        assert b"PRIVATE KEY" in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in authorities)


def test_certificates_are_kept_until_half_of_their_life_is_over(tmp_path: Path) -> None:
    made = state.make(tmp_path, 1)
    authority.issue_all(made, NOW)
    first, first_ca = certificate(made, "n1"), certificate(made, "ca")
    authority.issue_all(made, NOW + datetime.timedelta(days=44))
    assert certificate(made, "n1") == first
    authority.issue_all(made, NOW + datetime.timedelta(days=46))
    assert certificate(made, "n1") != first
    assert certificate(made, "ca") == first_ca
    certificate(made, "n1").verify_directly_issued_by(first_ca)
