"""What a page links to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT)
    for folder in ("proto", "controlplane", "agent", "deploy", "tests")
    for page in (ROOT / folder).rglob("*.md")
)


@pytest.mark.parametrize("page", [Path("README.md"), *PAGES], ids=str)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []
