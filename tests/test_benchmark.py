import json
import os
import subprocess
import sys

import pytest

from ainn_lib import AINNError
from ainn_lib.paths import RESULTS, ROOT
from ainn_lib.studies import benchmark


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "WIDTH", 192)
    monkeypatch.setattr(benchmark, "HEIGHT", 128)
    monkeypatch.setattr(benchmark, "REPEATS", 1)


@pytest.mark.slow
def test_both_coders_code_the_same_latent(small):
    found = benchmark.measure("tiny")
    assert found["bytes"]["ours"] == pytest.approx(found["bytes"]["serial"], rel=0.02)
    seconds, ratios = found["seconds"], found["ratios"]
    assert seconds["decode"] == pytest.approx(seconds["entropy_decode"] + seconds["synthesis"])
    assert ratios["decode"] == pytest.approx(seconds["serial_decode"] / seconds["decode"])
    assert ratios["entropy_decode"] > 3


def test_each_measurement_has_a_process_of_its_own():
    assert benchmark._apart(os.getpid) != os.getpid()
    with pytest.raises(AINNError, match="died"):
        benchmark._apart(os.abort)


@pytest.mark.slow
def test_decode_and_training_step_idle_and_busy(small, monkeypatch):
    children, popen = [], benchmark.subprocess.Popen

    def watched(*arguments, **options):
        children.append(popen(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(benchmark.subprocess, "Popen", watched)
    found = benchmark.beside_busy()
    assert set(found) == {"decode", "training_step"}
    for times in found.values():
        assert times["ratio"] == pytest.approx(times["busy"] / times["idle"]) and times["idle"] > 0
    assert [child.poll() is not None for child in children] == [True]  # it spins no longer


def test_the_file_says_where_its_numbers_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_apart", lambda function, *what: {"of": what})
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    path = benchmark.benchmark(["tiny", "paper"], tmp_path / "times.json")
    facts = json.loads(path.read_text())
    assert [result["of"] for result in facts["results"]] == [["tiny"], ["paper"]]
    assert facts["environment"] == {"GOMP_SPINCOUNT": "1000"}
    assert facts["source"] == "measured here" and "commit" in facts
    with pytest.raises(AINNError, match="unknown preset"):
        benchmark.benchmark(["nope"], tmp_path / "times.json")
    with pytest.raises(AINNError, match="is a folder"):
        benchmark.benchmark(["tiny"], tmp_path)


def test_what_the_readme_says_of_a_busy_machine_was_measured():
    measured = json.loads((RESULTS / "benchmark_busy.json").read_text())
    assert measured["environment"] == {"GOMP_SPINCOUNT": "1000"}
    ratios = {name: times["ratio"] for name, times in measured["beside"].items()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"a whole decode takes {ratios['decode']:.1f} times as long" in readme
    assert f"a training step {ratios['training_step']:.1f} times" in readme


def test_the_peak_is_that_of_the_process_itself():
    """Not what its parent held: that made a test fail in a large process, and only there."""
    program = "from ainn_lib.studies.benchmark import peak_mib; print(peak_mib())"
    parent = f"""
import subprocess, sys
held = bytearray(2**31 - 1)
held[::4096] = bytes(len(held[::4096]))  # touched: it is in memory
print(subprocess.run([sys.executable, "-c", {program!r}], capture_output=True, text=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert 50 < float(done.stdout) < 1500, done
