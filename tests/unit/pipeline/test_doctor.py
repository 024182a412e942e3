"""`luthier doctor`: a sound installation is said to be sound, a missing or old library is named with its pip line."""

import json

from luthier.cli.app import outcome
from luthier.pipeline import doctor


def by_name(found):
    return {one["what"]: one for one in found}


def test_a_sound_installation_exits_0(tmp_path, capsys):
    assert outcome(["doctor", "--json", "--run-dir", str(tmp_path / "runs")]) == 0
    found = by_name(json.loads(capsys.readouterr().out)["findings"])
    assert found["torch"]["status"] == "ok"
    assert found["peft"]["status"] == "ok"
    assert "extra serve" in found
    assert not (tmp_path / "runs").exists()


def test_an_old_and_an_absent_library_are_told_with_the_line_that_mends_it(tmp_path, monkeypatch):
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: {"peft": "0.1.0", "torch": None}.get(name, real(name)))
    found = by_name(doctor.examine(tmp_path))
    assert found["peft"]["status"] == "wrong"
    assert 'pip install "peft' in found["peft"]["remedy"]
    assert found["torch"]["found"] == "absent"
    assert found["safetensors"]["status"] == "ok"


def test_a_missing_extra_is_a_note_not_a_fault(tmp_path, monkeypatch):
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "fastapi" else real(name))
    found = by_name(doctor.examine(tmp_path))
    assert found["extra serve"]["status"] == "note"
    assert found["extra serve"]["remedy"] == 'pip install "luthier[serve]"'


def test_list_without_a_word_names_every_list(capsys):
    assert outcome(["list"]) == 0
    said = capsys.readouterr().out
    assert "lora" in said
    assert "contexts" in said
