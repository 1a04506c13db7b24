"""Scans that are unlike the others, or those of a training, are told with the reason."""

import json

import nibabel as nib
import numpy as np
import pytest

from monai_dpmm.app.cli import main
from monai_dpmm.io.outliers import looked_at, scan_numbers, scan_outliers

ORIGIN = {
    "spacing_mm": {"lowest": [1.0, 1.0, 1.0], "highest": [1.0, 1.0, 1.2]},
    "intensity": {"lowest": [60.0, 95.0, 130.0], "highest": [70.0, 110.0, 145.0]},
}


def _scan(folder, name, *, spacing=(1, 1, 1), factor=1.0, invert=False):
    random = np.random.default_rng(len(name))
    voxels = np.zeros((20, 22, 18), np.float32)
    inside = random.normal(100, 12, (12, 14, 12)).astype(np.float32)
    inside[:3] = 200 if not invert else 20  # a bright and then a dark part
    voxels[4:16, 4:18, 3:15] = inside * factor
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    return str(path)


def _outliers(paths, origin=None):
    return scan_outliers({path: looked_at(path) for path in paths}, origin)


def test_numbers_of_a_scan(tmp_path):
    numbers = scan_numbers(_scan(tmp_path, "a", spacing=(3, 1, 2)))
    assert numbers.spacing == (1, 2, 3)
    assert numbers.orientation == "RAS"
    assert numbers.intensity[1] == pytest.approx(105, abs=6)


def test_what_is_unlike_the_others_is_told(tmp_path):
    usual = [_scan(tmp_path, f"usual{n}") for n in range(5)]
    odd = {
        "thick": _scan(tmp_path, "thick", spacing=(1, 1, 5)),
        "bright": _scan(tmp_path, "bright", factor=16),
        "inverted": _scan(tmp_path, "inverted", invert=True),
    }
    (tmp_path / "cut.nii.gz").write_bytes(b"nothing")
    cut = str(tmp_path / "cut.nii.gz")
    found = _outliers([*usual, *odd.values(), cut])
    told = {line.split(": ")[0]: line for line in found.unlike}
    assert told.keys() == {*odd.values(), cut}
    assert "voxels of 1 x 1 x 5 mm, those of the others 1 x 1 x 1" in told[odd["thick"]]
    assert "intensities up to" in told[odd["bright"]]
    assert "another contrast" in told[odd["inverted"]]
    assert found.usual[0].startswith("axes point to RAS (8)")


def test_what_is_unlike_the_training_is_told_of_a_single_scan(tmp_path):
    thick = _scan(tmp_path, "thick", spacing=(1, 1, 5))
    usual, (line,) = _outliers([thick], ORIGIN)
    assert line.startswith(f"{thick}: ")
    assert "those of the training 1 x 1 x 1" in line
    assert usual[0] == "axes point to RAS (1); all are turned to one orientation"
    assert usual[1].startswith("usual (medians): voxels of 1 x 1 x 5 mm, intensities ")
    fitting, unknown = _scan(tmp_path, "usual"), {"scans": {"training": 3}}
    assert not _outliers([fitting], unknown).unlike


def test_the_training_is_told_where_the_model_knows_it(tmp_path):
    known = {name: {**ends, "median": ends["lowest"]} for name, ends in ORIGIN.items()}
    lines = _outliers([_scan(tmp_path, "usual")], known).usual
    told = (
        "voxels of 1 x 1 x 1 mm, intensities 60 to 130 (5 and 95 %), their median at 0.50 of that"
    )
    assert f"the model's training: {told}" in lines


def test_check_ends_with_1_where_a_scan_is_unlike_the_training(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "scans").mkdir()
    own = list(scan_numbers(_scan(tmp_path / "scans", "usual")).intensity)
    origin = {"spacing_mm": ORIGIN["spacing_mm"], "intensity": {"lowest": own, "highest": own}}
    (tmp_path / "models/model.json").write_text(json.dumps({"origin": origin}))
    arguments = ["check", str(tmp_path / "scans"), "--model", str(tmp_path)]
    main(arguments)
    assert "1 of 1 scans have voxels and intensities as usual" in capsys.readouterr().out
    for name in ("other", "third"):
        _scan(tmp_path / "scans", name)
    _scan(tmp_path / "scans", "thick", spacing=(1, 1, 5))
    (tmp_path / "scans/cut.nii.gz").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert "3 of 5 scans have voxels and intensities as usual" in capsys.readouterr().out
