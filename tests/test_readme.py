"""What the README shows works as it is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.config import load_config
from tests.toys import write_run

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_selection_from_python(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = re.search(r"<!-- tested: selection -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found
    code = found[1].replace("RunConfig(", "RunConfig(surrogate={'steps': 4}, ")
    code += "\nimport sys; assert 'prefect' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nearest_example_id" in done.stdout
    assert (tmp_path / ".albat" / "selection").is_dir()


def test_every_configuration_is_sound(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(shown) == 2
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_config(str(path)).adaptation


def test_every_link_into_the_repository_leads_somewhere() -> None:
    targets = re.findall(r"\]\(((?!http)[^)#]+)", README)
    assert targets
    for target in targets:
        assert (Path(__file__).parent.parent / target).exists(), target
