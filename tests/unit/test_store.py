"""The store: ids follow settings and inputs, a step is done when its record says so, locks hold, damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisewise.errors import SettingError
from noisewise.training.settings import TrainSettings
from noisewise.workflow.store import RECORD, StepSpec, Store, closure, run_lock


def step(name: str = "base", inputs: dict[str, StepSpec] | None = None, **settings: Any) -> StepSpec:
    return StepSpec(name, "train", settings, inputs or {})


def finished(store: Store, spec: StepSpec, text: str = "weights") -> None:
    with store.lock(spec):
        (store.folder(spec) / "model.txt").write_text(text)
        store.finish(spec, {"macs": 3}, 1.5, {"versions": {}})


def test_id_is_readable_and_the_same_in_every_process() -> None:
    spec = step("finetune[2]", train=TrainSettings(num_images=10), timesteps=(0, 4))
    assert spec.id.startswith("finetune-2-")
    assert spec.id == step("finetune[2]", train=TrainSettings(num_images=10), timesteps=[0, 4]).id


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 3)), st.sampled_from("abc"), st.integers(4, 9))
def test_a_changed_setting_changes_this_step_and_what_depends_on_it(old: dict[str, int], key: str, value: int) -> None:
    before, after = step(settings=old), step(settings={**old, key: value})
    assert before.id != after.id
    assert step("next", {"source": before}).id != step("next", {"source": after}).id
    assert step("other", seed=1).id == step("other", seed=1).id


def test_predictions_do_not_change_the_id() -> None:
    assert StepSpec("a", "train", {}, {}, num_images=3, macs=1.0).id == StepSpec("a", "train", {}, {}).id


def test_closure_lists_inputs_first_and_each_once() -> None:
    base = step()
    left, right = step("left", {"source": base}), step("right", {"source": base})
    end = step("end", {"a": left, "match": right})
    assert [found.name for found in closure([end])] == ["base", "left", "right", "end"]
    assert [found.name for found in closure([end], but=["match"])] == ["base", "left", "end"]


def test_a_step_is_done_only_when_its_record_is_written(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), step(seed=0)
    with store.lock(spec):
        (store.folder(spec) / "model.txt").write_text("half")
        assert not store.is_done(spec)
    assert not store.is_done(spec)
    finished(store, spec)
    record = store.record(spec)
    assert store.is_done(spec)
    assert record.result == {"macs": 3}
    assert set(record.files) == {"model.txt"}
    assert json.loads((store.folder(spec) / RECORD).read_text())["settings"] == {"seed": 0}


@pytest.mark.parametrize("damage", ["longer text", "other w", ""])
def test_altered_files_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    store, spec = Store(tmp_path), step()
    finished(store, spec)
    store.check(spec)
    (store.folder(spec) / "model.txt").write_text(damage)
    with pytest.raises(SettingError, match=r"model\.txt: is not what the step wrote .* to redo step base"):
        store.check(spec)
    (store.folder(spec) / "model.txt").unlink()
    with pytest.raises(SettingError, match="is missing"):
        store.check(spec)


def test_failures_are_remembered_until_the_step_is_done(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), step()
    with store.lock(spec):
        store.fail(spec, "no luck")
    assert store.failure(spec) == "no luck"
    finished(store, spec)
    assert store.failure(spec) is None


HOLD = """
import sys, time
from pathlib import Path
from noisewise.workflow.store import Store, StepSpec, run_lock
store, spec = Store(Path(sys.argv[1])), StepSpec("base", "train", {})
with store.lock(spec), run_lock(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_seen_and_its_death_frees_everything(tmp_path: Path) -> None:
    store, spec, run = Store(tmp_path / "store"), step(), tmp_path / "run"
    assert not store.is_running(spec)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "store"), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.is_running(spec)
        with pytest.raises(SettingError, match=rf"another process \(process {holder.pid}\) is working on this run"):
            run_lock(run).__enter__()
        holder.kill()
    assert not store.is_running(spec)
    waited: list[bool] = []
    with run_lock(run), store.lock(spec, lambda: waited.append(True)):
        assert not waited
