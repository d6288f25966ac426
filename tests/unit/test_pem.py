"""Keys, requests, and files that hold them."""

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from estiba.kit import pem
from estiba.kit.pem import Life


def test_a_request_names_its_holder_and_proves_the_key() -> None:
    key, request_pem = pem.make_key_and_request(name="n1", role="estiba:node", hostname="node-1")
    request = x509.load_pem_x509_csr(request_pem)

    assert request.is_signature_valid
    assert request.subject == pem.subject("n1", "estiba:node", "node-1")
    assert request.public_key() == pem.load_key(key).public_key()


def test_a_holder_without_a_name_leaves_it_to_the_authority() -> None:
    _, request_pem = pem.make_key_and_request(name="", role="estiba:node")
    subject = x509.load_pem_x509_csr(request_pem).subject

    assert not subject.get_attributes_for_oid(NameOID.COMMON_NAME)


def test_each_request_has_a_key_of_its_own_and_each_key_another_id() -> None:
    keys = [pem.load_key(pem.make_key_and_request(name="n", role="r")[0]) for _ in range(2)]
    first, second = (pem.key_id(key.public_key()) for key in keys)

    assert first != second
    assert len(first) == 16
    assert int(first, 16)


def test_a_key_is_found_behind_a_certificate_in_one_file() -> None:
    key, _ = pem.make_key_and_request(name="n", role="r")
    file = b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n" + key

    assert pem.load_key(file).public_key() == pem.load_key(key).public_key()


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="PEM"):
        pem.load_key(b"nothing")


def test_a_life_is_half_over_in_its_middle_and_negative_after_its_end() -> None:
    life = Life(100.0, 200.0)

    assert [life.half_over(now_s) for now_s in (100, 149, 150, 201)] == [False, False, True, True]
    assert life.remaining_s(150.0) == 50.0
    assert life.remaining_s(201.0) == -1.0


def test_a_file_is_replaced_whole_whatever_was_left_of_an_earlier_try(tmp_path: Path) -> None:
    path = tmp_path / "node.pem"
    path.write_text("before")
    path.chmod(0o644)
    (tmp_path / ".node.pem.new").write_text("of a try that was killed")

    pem.replace_file(path, b"after")

    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["node.pem"]


def test_a_file_has_the_mode_that_was_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        pem.replace_file(tmp_path / "ca.pem", b"", mode=0o644, owner=(os.getuid(), os.getgid()))
    finally:
        os.umask(before)

    assert (tmp_path / "ca.pem").stat().st_mode & 0o777 == 0o644
