"""Training scans join a calibration, each scored by the model of the others."""

import copy

import pytest
import torch
from ignite.engine import Engine
from test_model_completion import SIZE, Backbone, embedded, scan

from monai_dpmm import AnomalyDetector, LeaveOneOut, calibration_scans
from monai_dpmm.engines import left_out
from monai_dpmm.engines.scan_handlers import expected_sentence
from monai_dpmm.mixture.planes import create_mixture

AXES = (2, 0, 1)


def test_training_scans_are_taken_where_few_are_held_back():
    few, many = [{"image": str(i)} for i in range(18)], [{"image": str(i)} for i in range(19)]
    trained = [{"image": "a"}, {"image": "b"}]
    assert calibration_scans(few, trained) == few + trained
    assert calibration_scans(many, trained) == many
    assert calibration_scans(many, trained, True) == many + trained
    assert calibration_scans(few, trained, False) == few


def test_training_scans_of_one_patient_have_no_model_of_others():
    one = [{"image": "a", "patient": "p"}, {"image": "b", "patient": "p"}]
    assert calibration_scans([{"image": "c"}], one) == [{"image": "c"}]
    assert calibration_scans([{"image": "c"}], one[:1], True) == [{"image": "c"}]


def detector_of(scans, axes=AXES):
    """A detector fitted to embedded scans, with places counted and used."""
    mixture = create_mixture(
        len(axes), features=3, components=6, place_grid=(2, 2, 2), variance_floor=1e-3
    )
    detector = AnomalyDetector(Backbone(), mixture, image_size=SIZE)
    for direction, own in enumerate(detector.mixtures):
        grids = [scans[i][direction] for i in range(len(scans))]
        pairs = [(one["image"].flatten(0, -2), one["place"].flatten(0, -2)) for one in grids]
        own.initialize(torch.cat([x for x, _ in pairs]))
        for _ in range(3):
            for x, _ in pairs:
                own.step(x)
        own.places.counts.copy_(sum(own.place_counts(x, u) for x, u in pairs))
        own.places.used.fill_(True)
    return detector


def refit(detector, scans, left_out):
    """The detector after one step of plain EM on all scans but some."""
    result = copy.deepcopy(detector)
    for direction, own in enumerate(result.mixtures):
        grids = [scans[i][direction] for i in range(len(scans)) if i not in left_out]
        x, u = (torch.cat([one[key].flatten(0, -2) for one in grids]) for key in ("image", "place"))
        counts = own.place_counts(x, u)
        own.m_step(own.e_step(x), whole=True)
        own.places.counts.copy_(counts)
    return result


def is_fitted(detector, fitted):
    """Whether the detector's mixtures have the state of a fit."""
    state = detector.state_dict()
    mixtures = [name for name in state if name.startswith("mixture.")]
    return all(torch.equal(state[name], fitted[name]) for name in mixtures)


def run(handler, numbers, seen):
    engine = Engine(lambda _, batch: seen(int(batch["scan"])))
    handler.attach(engine)
    engine.run([{"scan": torch.tensor([number])} for number in numbers], max_epochs=1)


@pytest.mark.parametrize("kept", [0, 4000, 2**29])  # bytes: of no scan, of some, of all
@pytest.mark.parametrize("patients", [None, ["p", "q", "p", "r"]])
def test_each_is_scored_by_the_model_of_the_others(patients, kept, monkeypatch):
    monkeypatch.setattr(left_out, "_KEPT", kept)
    scans = embedded([scan(i) for i in range(4)], AXES)
    detector = detector_of(scans)
    fitted = copy.deepcopy(detector.state_dict())
    if patients:
        for item, patient in zip(scans.data, patients, strict=True):
            item["patient"] = patient
    handler, checked = LeaveOneOut(detector, scans, first=2), []

    def seen(number):
        if number < 2:
            expected = fitted
        else:
            same = [i for i in range(4) if patients and patients[i] == patients[number - 2]]
            before = copy.deepcopy(detector)
            before.load_state_dict(fitted)
            expected = refit(before, scans, same or [number - 2]).state_dict()
        for name, value in detector.state_dict().items():
            if name.endswith(("offsets", "log_weights", "variance", "counts")):
                assert torch.allclose(value, expected[name], atol=2e-3), (number, name)
        checked.append(number)

    run(handler, range(6), seen)
    assert checked == [0, 1, 2, 3, 4, 5]
    assert is_fitted(detector, fitted)


def test_a_failure_gives_the_fitted_model_back():
    scans = embedded([scan(i) for i in range(3)], AXES)
    detector = detector_of(scans)
    fitted = copy.deepcopy(detector.state_dict())

    def fails(number):
        assert not torch.equal(detector.mixtures[0].offsets, fitted["mixture.0.offsets"])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run(LeaveOneOut(detector, scans, first=0), [0], fails)
    assert is_fitted(detector, fitted)


def test_a_direction_of_one_patient_alone_is_told(caplog):
    thick = scan(1, spacing=(1, 1, 5))  # of which axial slices only are used
    scans = embedded([scan(0), thick], AXES)
    detector = detector_of(embedded([scan(0), scan(2)], AXES))
    fitted = copy.deepcopy(detector.state_dict())
    run(LeaveOneOut(detector, scans, first=0), [0], lambda _: None)
    assert "slices of direction 1 are of one patient" in caplog.text
    assert torch.equal(detector.state_dict()["mixture.1.offsets"], fitted["mixture.1.offsets"])


def test_the_closing_sentence_says_which_scans_were_seen():
    one = {"ml_per_scan": 2, "scans": 16, "min_lesion_ml": 0, "mean_ml": 2.0, "interval": None}
    one |= {"findings_per_scan": 1.0, "findings_interval": None}
    assert expected_sentence([one], 12).endswith(
        "(from 4 held-back scans and 12 training scans, each scored by the model without it)."
    )
    assert expected_sentence([one]).endswith("(from 16 held-back scans).")
