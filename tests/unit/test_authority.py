"""The authority: what certificates say, which requests it takes, and what it keeps of its files."""

import base64
import datetime
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.authority import files, issuing, requests
from controlplane.authority.issuing import Authority, Holder, OtherRole
from estiba.kit import jointoken, pem
from estiba.kit.tls import AGENT_SERVER_NAME, MEMBER_SERVER_NAME, Identity, Role, identity_of

NOW = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC)
NODE = Holder(Role.NODE, "0123456789abcdef", hostname="n1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return issuing.make_authority("estiba test", NOW)


@pytest.fixture(scope="module")
def other() -> Authority:
    return issuing.make_authority("estiba test", NOW)


def certificate_of(authority: Authority, holder: Holder) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issuing.issue_with_key(authority, holder, NOW))


def names_of(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found.value]


# ------------------------------------------------------------------ what certificates say


def test_a_nodes_certificate_binds_its_id_its_role_and_its_host_name(authority: Authority) -> None:
    certificate = certificate_of(authority, NODE)

    identity = identity_of(certificate.public_bytes(Encoding.PEM))
    assert identity == Identity(Role.NODE, "0123456789abcdef")
    assert identity.hostname == "n1"
    assert names_of(certificate) == [AGENT_SERVER_NAME]


def test_a_certificate_lasts_90_days_from_5_minutes_ago(authority: Authority) -> None:
    certificate = certificate_of(authority, NODE)

    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(minutes=5)
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lasts == datetime.timedelta(days=90)


@pytest.mark.parametrize(
    ("holder", "serves", "names"),
    [
        (NODE, True, [AGENT_SERVER_NAME]),
        (Holder(Role.MEMBER, "m1"), True, [MEMBER_SERVER_NAME]),
        (Holder(Role.USER, "admin"), False, []),
        (Holder(Role.METRICS, "prometheus"), False, []),
        (Holder(OtherRole.ETCD, "etcd", names=("127.0.0.1",)), True, ["127.0.0.1"]),
        (Holder(OtherRole.ETCD_CLIENT, "estibad"), False, []),
        (Holder(OtherRole.REGISTRY, "r", names=("r.estiba", "::1")), True, ["r.estiba", "::1"]),
    ],
)
def test_who_serves_has_names_and_who_only_calls_has_none(
    authority: Authority, holder: Holder, serves: bool, names: list[str]
) -> None:
    certificate = certificate_of(authority, holder)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) is serves
    assert names_of(certificate) == names
    assert issuing.signed_by(authority, certificate)


def test_another_authority_of_the_same_name_has_not_signed(
    authority: Authority, other: Authority
) -> None:
    assert not issuing.signed_by(other, certificate_of(authority, NODE))
    assert authority.digest != other.digest


def test_an_authority_is_named_by_the_digest_of_its_der(authority: Authority) -> None:
    der = authority.certificate.public_bytes(Encoding.DER)
    assert authority.digest == jointoken.digest_of(der)


def test_no_holder_may_sign(authority: Authority) -> None:
    text = issuing.issue_with_key(authority, NODE, NOW)
    with pytest.raises(ValueError, match="no authority's"):
        issuing.read_authority(text, text)


def test_an_authoritys_key_is_in_nothing_that_is_printed(authority: Authority) -> None:
    assert "key" not in repr(authority)


# ------------------------------------------------------------------ requests


def test_a_request_gives_a_node_the_id_of_its_key(authority: Authority) -> None:
    key, request_pem = pem.make_key_and_request(name="", role=Role.NODE)
    request = requests.read_request(request_pem)

    assert requests.node_id(request, b"", authority) == pem.key_id(pem.load_key(key).public_key())


def test_a_node_that_was_one_keeps_its_id_whenever_its_certificate_ended(
    authority: Authority,
) -> None:
    long_ago = NOW - datetime.timedelta(days=1000)
    former = issuing.issue_with_key(authority, NODE, long_ago)
    request = requests.read_request(pem.make_request(former, name="", role=Role.NODE))

    assert requests.node_id(request, former, authority) == NODE.name


def test_a_former_certificate_is_refused_in_a_sentence(
    authority: Authority, other: Authority
) -> None:
    mine, another = (issuing.issue_with_key(authority, NODE, NOW) for _ in range(2))
    foreign = issuing.issue_with_key(other, NODE, NOW)
    user = issuing.issue_with_key(authority, Holder(Role.USER, "admin"), NOW)
    for former, key, sentence in (
        (mine, another, "another key than the request"),
        (foreign, foreign, "another cluster, run `estiba node leave`"),
        (user, user, "it is user:admin's"),
        (b"nothing", mine, "is no node's certificate"),
        (b"x" * 10_000, mine, "10000 bytes"),
    ):
        request = requests.read_request(pem.make_request(key, name="", role=Role.NODE))
        with pytest.raises(ValueError, match=sentence):
            requests.node_id(request, former, authority)


def test_a_request_whose_key_is_not_proven_is_refused() -> None:
    _, request_pem = pem.make_key_and_request(name="n", role=Role.NODE)
    der = bytearray(x509.load_pem_x509_csr(request_pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)

    with pytest.raises(ValueError, match="does not prove"):
        requests.read_request(forged)


def test_a_request_with_a_key_of_another_kind_is_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(pem.subject("n", Role.NODE))
    for signed in (
        builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
    ):
        with pytest.raises(ValueError, match="P-256"):
            requests.read_request(signed.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("text", [b"", b"nothing", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="is no signing request"):
        requests.read_request(text)


def with_a_byte_changed(der: bytes, kind: str) -> Iterator[bytes]:
    """Yield a text for each of its bytes in turn, in which that is another."""
    rng = random.Random(1)
    for at in range(len(der)):
        changed = bytearray(der)
        changed[at] ^= rng.randrange(1, 256)
        body = base64.encodebytes(changed).decode()
        yield f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n".encode()


def test_whatever_is_changed_in_a_request_it_is_refused_in_a_sentence() -> None:
    _, request_pem = pem.make_key_and_request(name="n", role=Role.NODE)
    der = x509.load_pem_x509_csr(request_pem).public_bytes(Encoding.DER)
    for text in with_a_byte_changed(der, "CERTIFICATE REQUEST"):
        with pytest.raises(ValueError, match="request_pem: "):
            requests.read_request(text)


def test_whatever_is_changed_in_a_former_certificate_it_is_refused_in_a_sentence(
    authority: Authority,
) -> None:
    mine = issuing.issue_with_key(authority, NODE, NOW)
    request = requests.read_request(pem.make_request(mine, name="", role=Role.NODE))
    der = x509.load_pem_x509_certificate(mine).public_bytes(Encoding.DER)
    for text in with_a_byte_changed(der, "CERTIFICATE"):
        with pytest.raises(ValueError, match="former_certificate_pem: "):
            requests.node_id(request, text, authority)


def test_of_a_certificate_of_nobody_we_know_nothing_is_remembered(
    authority: Authority, other: Authority
) -> None:
    foreign = issuing.issue_with_key(other, NODE, NOW)
    request = requests.read_request(pem.make_request(foreign, name="", role=Role.NODE))
    before = identity_of.cache_info().currsize
    with pytest.raises(ValueError, match="another cluster"):
        requests.node_id(request, foreign, authority)
    assert identity_of.cache_info().currsize == before


def test_a_request_that_is_too_large_is_not_even_read() -> None:
    with pytest.raises(ValueError, match="8192 at most"):
        requests.read_request(b"x" * 8193)


def test_a_certificate_is_renewed_by_its_holder_alone() -> None:
    caller = Identity(Role.NODE, "n1", "host-1")

    def asked(name: str, role: str, hostname: str) -> requests.Request:
        _, request = pem.make_key_and_request(name=name, role=role, hostname=hostname)
        return requests.read_request(request)

    requests.check_renewal(asked("n1", Role.NODE, "host-1"), caller)
    for name, role, hostname in (
        ("n2", Role.NODE, "host-1"),
        ("n1", Role.USER, "host-1"),
        ("n1", Role.NODE, "host-2"),
        ("n1", Role.NODE, ""),
    ):
        with pytest.raises(ValueError, match="renewed by its holder"):
            requests.check_renewal(asked(name, role, hostname), caller)


@pytest.mark.parametrize("name", ["n1", "a", "node-1.example_2", "x" * 64])
def test_a_host_name_of_a_machine_is_taken(name: str) -> None:
    requests.check_hostname(name)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "\u00e4", "x" * 65])
def test_a_host_name_that_no_machine_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="hostname: "):
        requests.check_hostname(name)


# ------------------------------------------------------------------ files


def test_an_authority_is_made_once_and_read_ever_after(tmp_path: Path) -> None:
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca-key.pem"
    made = files.open_or_make_authority(certificate, key, "estiba test", NOW)
    read = files.open_or_make_authority(certificate, key, "estiba test", NOW)

    assert read.certificate == made.certificate
    assert key.stat().st_mode & 0o777 == 0o600
    assert certificate.stat().st_mode & 0o777 == 0o644


def test_a_key_without_a_certificate_is_of_a_try_that_was_killed(tmp_path: Path) -> None:
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca-key.pem"
    files.open_or_make_authority(certificate, key, "estiba test", NOW)
    certificate.unlink()

    made = files.open_or_make_authority(certificate, key, "estiba test", NOW)
    assert files.open_authority(certificate, key).certificate == made.certificate


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        files.open_or_make_authority(
            tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem", name, NOW
        )
    with pytest.raises(ValueError, match=r"a\.pem and .*b-key\.pem: the key is not"):
        files.open_authority(tmp_path / "a.pem", tmp_path / "b-key.pem")
    with pytest.raises(ValueError, match=r"c\.pem: No such file"):
        files.open_authority(tmp_path / "c.pem", tmp_path / "b-key.pem")


def test_a_holders_file_is_written_when_it_is_not_good(
    tmp_path: Path, authority: Authority, other: Authority
) -> None:
    path = tmp_path / "node.pem"
    half = datetime.timedelta(days=45)

    assert files.ensure_holder(path, authority, NODE, NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not files.ensure_holder(path, authority, NODE, NOW)
    assert files.ensure_holder(path, authority, NODE, NOW + half)
    assert files.ensure_holder(path, other, NODE, NOW + half)
    assert files.ensure_holder(path, other, Holder(Role.NODE, NODE.name, "n2"), NOW + half)
    assert files.ensure_holder(path, other, Holder(Role.NODE, "n2", "n2"), NOW + half)
    assert files.ensure_holder(path, other, Holder(Role.NODE, "n2", "n2"), NOW + half, force=True)
    path.write_bytes(b"cut")
    assert files.ensure_holder(path, other, Holder(Role.NODE, "n2", "n2"), NOW + half)
    server = Holder(OtherRole.ETCD, "etcd", names=("127.0.0.1",))
    assert files.ensure_holder(path, other, server, NOW)
    assert files.ensure_holder(
        path, other, Holder(OtherRole.ETCD, "etcd", names=("127.0.0.1", "10.0.0.1")), NOW
    )
