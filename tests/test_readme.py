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


KEPT = {
    "Weights are read from safetensors only": (
        "core/test_adapter_folder.py::test_pickled_weights_are_never_read",
        "core/test_diffusion.py::test_weights_that_are_pickled_are_never_read",
        "core/test_language.py::test_a_folder_that_cannot_be_used_is_refused",
        "core/test_embedders.py::test_an_encoder_that_cannot_be_trusted_or_read_is_refused",
    ),
    "arrays without pickle, records from JSON": (
        "test_architecture.py::test_no_pickle_is_read",
        "core/test_damage.py::test_a_bit_flipped_in_each_kind_of_file_changes_no_result",
    ),
    "runs only with `trust_remote_code: true`": (
        "core/test_remote_code.py::test_a_language_model_s_code_does_not_run_by_default",
        "core/test_remote_code.py::test_nothing_else_runs_code",
    ),
    "Prefect's own result storage is not used": (
        "flows/test_lifting.py::test_no_flow_keeps_its_result_with_prefect",
        "flows/test_lifting.py::test_no_task_keeps_its_result_with_prefect",
    ),
    "held against their SHA-256 when they are first read: a damaged one is made again": (
        "core/test_damage.py::test_a_flipped_bit_is_told_and_the_artifact_is_made_again",
        "core/test_damage.py::test_each_file_is_read_once_until_it_changes",
    ),
    "A local input is read again when its size,\ninode or times have changed": (
        "core/test_digests.py::test_whatever_may_be_other_content_is_read",
    ),
    "kills runs, flips bits and lets storage and Prefect fail": (
        "end_to_end/test_chaos.py::test_kills_and_flipped_bits_are_survived",
    ),
}
"""Which tests hold each promise of the section on safety; its other sentences are warnings."""


@pytest.mark.parametrize("promise", KEPT)
def test_each_promise_of_safety_has_a_test_of_its_name(promise: str) -> None:
    (safety,) = re.findall(r"## Safety\n(.*?)\n## ", README, re.DOTALL)
    assert promise in safety
    for name in KEPT[promise]:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(), name
