"""Stories of the deciding code: commands and the transcript they must give.

Each `.txt` file is one story in a world of its own. Text before a command is prose; a command
stands on its own line, `----` under it, then what it answers up to an empty line:

    scale 3
    ----
    (nothing)

The commands are described in `tests.support.stories`. After a wanted change,
`python -m tests.support.stories FILE...` writes the answers anew; read the difference.
"""

from pathlib import Path

import pytest

from tests.support.stories import play

STORIES = sorted(Path(__file__).parent.glob("*.txt"))


def test_there_are_stories() -> None:
    assert STORIES


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_a_story_goes_as_it_is_told(story: Path) -> None:
    told = story.read_text()

    assert play(told) == told
