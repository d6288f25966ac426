"""When a node renews its certificate, and whose certificate it shows."""

import datetime
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config
from agent.connecting import Connector
from agent.identity import check_holder, live_tls
from agent.renewal import LOOK_S, Renewal, wait_s
from controlplane.authority import issuing
from controlplane.authority.issuing import Holder
from controlplane.authority.requests import read_request
from estiba.kit import pem
from estiba.kit.pem import Life
from estiba.kit.tls import Role, TlsFiles
from estiba.v1 import certificates_pb2 as pb
from tests.support.agent_node import Node
from tests.support.certificates import Certificates, issue

DAY_S = 86400.0
LIFE = Life(0.0, 90 * DAY_S)

spreads = st.floats(0, 1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def config(tmp_path: Path, certificates: Certificates) -> Config:
    return Node(tmp_path, certificates).config("127.0.0.1:1")


@given(st.floats(-DAY_S, 45 * DAY_S, exclude_max=True), spreads)
def test_before_half_of_its_life_it_looks_again_within_the_hour(
    now_s: float, spread: float
) -> None:
    assert 0 < wait_s(LIFE, now_s, spread=spread) <= LOOK_S


@given(st.floats(45.9 * DAY_S, 1000 * DAY_S), spreads)
def test_after_half_of_its_life_and_the_nodes_spread_it_renews_now(
    now_s: float, spread: float
) -> None:
    assert wait_s(LIFE, now_s, spread=spread) == 0


@given(st.floats(1, 1e9), spreads)
def test_who_waits_as_long_as_it_is_told_to_renews_in_time(length_s: float, spread: float) -> None:
    life, now_s = Life(0.0, length_s), 0.0
    while delay_s := wait_s(life, now_s, spread=spread):
        now_s += max(delay_s, length_s / 1000)
    assert now_s < 0.52 * length_s + LOOK_S


class EnoughError(Exception):
    """The test has seen enough."""


class Counting(Renewal):
    """Asks an authority whose clock is another, and a clock that does not go on while it sleeps."""

    def __init__(self, config: Config, certificates: Certificates, *, its_clock: float) -> None:
        self.asked: list[float] = []
        self.slept: list[float] = []
        self._authority = certificates.authority
        self._at = datetime.datetime.fromtimestamp(time.time() + its_clock, datetime.UTC)
        tls = live_tls(config)
        super().__init__(
            config,
            tls,
            members=lambda: ["m:1"],
            connector=Connector(tls, self),
            clock=self,
            random=lambda: 0.5,
        )

    def now(self) -> float:
        return time.time() + 50 * DAY_S

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        if len(self.slept) == 5:
            raise EnoughError

    async def _ask(self, address: str, request: pb.RenewRequest) -> pb.RenewResponse:
        del address
        self.asked.append(self.now())
        assert len(self.asked) < 20, "it asks again and again"
        asked = read_request(request.request_pem)
        holder = Holder(Role.NODE, "node-1", "n1")
        certificate = issuing.issue(self._authority, holder, asked.public_key, self._at)
        return pb.RenewResponse(certificate_pem=certificate)


@pytest.mark.parametrize("its_clock", [10.0, -80 * DAY_S])
async def test_who_gets_a_certificate_that_is_old_already_asks_less_and_less(
    config: Config, certificates: Certificates, tmp_path: Path, its_clock: float
) -> None:
    file = tmp_path / "node.pem"
    file.write_bytes(config.tls.cert.read_bytes())
    own = replace(config, tls=TlsFiles(config.tls.ca, file, file))
    before = pem.life_of(file.read_bytes())
    renewal = Counting(own, certificates, its_clock=its_clock)
    with pytest.raises(EnoughError):
        await renewal.run()
    assert len(renewal.asked) == 5
    assert renewal.slept[0] > 0
    assert renewal.slept[-1] > 3 * renewal.slept[0]
    # One that ends before ours is not taken.
    assert (pem.life_of(file.read_bytes()).ends_s > before.ends_s) == (its_clock > 0)


def test_a_nodes_own_certificate_is_shown(config: Config, certificates: Certificates) -> None:
    check_holder(config, certificates.of("n1").cert.read_bytes())


@pytest.mark.parametrize(
    ("holder", "sentence"),
    [
        ("n2", "it is node:node-2's, and node_id is node-1"),
        ("user", "it is user:admin's, and node_id is node-1"),
        ("estibad-1", "it is member:estibad-1's, and node_id is node-1"),
    ],
)
def test_nobody_elses_certificate_is_shown(
    config: Config, certificates: Certificates, holder: str, sentence: str
) -> None:
    files = certificates.of(holder)
    with pytest.raises(ValueError, match=f"^{files.cert}: {sentence}$"):
        live_tls(replace(config, tls=files))


def test_a_node_does_not_take_another_host_name_than_its_certificates(config: Config) -> None:
    with pytest.raises(ValueError, match="it is for the host name n1, and hostname is n9: to take"):
        live_tls(replace(config, hostname="n9"))


def test_a_certificate_that_is_gone_is_named(config: Config, tmp_path: Path) -> None:
    nowhere = tmp_path / "node.pem"
    with pytest.raises(ValueError, match=f"^{nowhere}: No such file or directory$"):
        live_tls(replace(config, tls=TlsFiles(config.tls.ca, nowhere, nowhere)))
