"""What the calibration finds on finished maps, of one scan, a few, or pictures."""

import json

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from monai_dpmm import AnomalyFindingsd, ScanCalibration, ThresholdAnomalyd
from monai_dpmm.files import load_tensors
from monai_dpmm.network.thresholds import thresholds_at

AFFINE = torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0]))
ML = 0.064


class Detector(torch.nn.Module):
    def __init__(self, keeps_patch_scores):
        super().__init__()
        self.register_buffer("false_positive_rates", torch.tensor([0.01, 0.1]).double())
        self.register_buffer("thresholds", torch.full((2,), 0.5))
        self.mixture = torch.nn.Module()
        self.mixture.components = 5
        self.keeps_patch_scores = keeps_patch_scores

    @property
    def thresholds_by_rate(self):
        return dict(zip(("0.01", "0.1"), self.thresholds.tolist(), strict=True))


def _scan(seed, shape=(14, 15, 16)):
    """A finished map, smooth so that findings have more than a voxel, and the foreground."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, 1, *shape), generator=generator)
    pool = torch.nn.functional.avg_pool3d if len(shape) == 3 else torch.nn.functional.avg_pool2d
    anomaly = 5 * pool(noise, 3, 1, 1)[0]
    component = torch.randint(1, 6, anomaly.shape, generator=generator).float()
    component[:, :3] = 0
    anomaly = torch.where(component > 0, anomaly, 99.0)  # air must never count
    maps = {"pred_anomaly": anomaly, "pred_component": component}
    return {key: MetaTensor(value, affine=AFFINE) for key, value in maps.items()}


def _calibrated(folder, scans, *, keeps_patch_scores=False, baselines=True, **options):
    """Settings, detector and what was printed, after the calibration on scans."""
    detector = Detector(keeps_patch_scores)
    (folder / "model.json").write_text(json.dumps({"score": "cosine"}))
    torch.save(detector.state_dict(), folder / "model.pt")

    def step(engine, scan):
        both = torch.cat([scan["pred_anomaly"], scan["pred_component"]])
        engine.state.output = {"pred": both[None]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return [scan | ({"baseline": 0.25} if baselines else {})]

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    volumes = options.pop("false_positive_volumes", [2, 5])
    ScanCalibration(folder / "model.json", detector, volumes, **options).attach(engine)
    engine.run(scans, max_epochs=1)
    return json.loads((folder / "model.json").read_text()), detector


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_thresholds_findings_scores_and_reference_of_any_number_of_scans(tmp_path, capsys, count):
    scans = [_scan(seed) for seed in range(count)]
    settings, _ = _calibrated(tmp_path, scans, min_lesion_ml=0.2)
    assert settings["score"] == "cosine"
    assert len(settings["healthy_scans"]["scores"]) == count
    assert (settings["scan_reference"] is None) == (count < 3)
    assert count < 3 or settings["scan_reference"]["baselines"] == [0.25] * count
    two, five = settings["volume_thresholds"]
    for one in (two, five):
        masks = [(s["pred_anomaly"] > one["threshold"]) & (s["pred_component"] > 0) for s in scans]
        volume = sum(float(mask.sum()) for mask in masks) * ML / count
        assert volume == pytest.approx(one["mean_ml"])
        assert 0.8 * one["ml_per_scan"] < volume <= one["ml_per_scan"]
        assert len(one["largest_findings"]) == count
        assert (one["interval"] is None) == (one["findings_interval"] is None) == (count == 1)
    assert max(two["largest_findings"]) < max(five["largest_findings"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"At the threshold for 2 ml, expect {two['mean_ml']:.1f} ml")
    assert f"{two['findings_per_scan']:.1f} findings of at least 0.2 ml" in last
    assert f"from {count} held-back scan" in last
    assert ("95 % interval" in last) == (count > 1)
    assert ("says nothing about how scans differ" in last) == (count == 1)


def test_thresholds_at_rates_are_those_of_finished_maps_and_are_saved(tmp_path):
    scans = [_scan(seed) for seed in range(2)]
    settings, detector = _calibrated(tmp_path, scans)
    scores = torch.cat([s["pred_anomaly"][s["pred_component"] > 0].as_tensor() for s in scans])
    expected = thresholds_at(scores, detector.false_positive_rates)
    assert torch.allclose(detector.thresholds, expected, rtol=3e-4)
    assert torch.equal(load_tensors(tmp_path / "model.pt")["thresholds"], detector.thresholds)
    kept = settings["volume_thresholds"][0]["patch_thresholds"]
    assert kept == pytest.approx(detector.thresholds_by_rate)


def test_thresholds_of_patches_stay_where_they_hold(tmp_path):
    before = (tmp_path / "model.pt", Detector(True))
    settings, detector = _calibrated(tmp_path, [_scan(0)], keeps_patch_scores=True, baselines=False)
    assert torch.equal(detector.thresholds, before[1].thresholds)
    assert torch.equal(load_tensors(before[0])["thresholds"], before[1].thresholds)
    assert settings["volume_thresholds"]


def test_a_calibrated_scan_meets_its_own_largest_finding(tmp_path):
    scans = [_scan(seed) for seed in range(4)]
    settings, detector = _calibrated(tmp_path, scans)
    known = {key: settings[key] for key in ("volume_thresholds", "healthy_scans")}
    threshold = ThresholdAnomalyd(
        "pred_anomaly",
        output_keys="pred_mask",
        false_positive_volume=5,
        volume_thresholds=settings["volume_thresholds"],
    )
    for scan, score in zip(scans, settings["healthy_scans"]["scores"], strict=True):
        anomaly = torch.where(scan["pred_component"] > 0, scan["pred_anomaly"], -9.0)
        anomaly.meta["thresholds"] = detector.thresholds_by_rate
        data = threshold({"pred_anomaly": anomaly, "score": score})
        findings = AnomalyFindingsd(**known)(data)["findings"]
        largest = settings["volume_thresholds"][1]["largest_findings"]
        excess = findings["lesions"][0]["excess"]
        rank = 1 + sum(other >= excess * (1 - 1e-5) for other in largest)
        assert findings["lesions"][0]["p_value"] in (rank / 5, (rank - 1) / 5)  # equal but for 1e-6
        assert any(excess == pytest.approx(other, rel=1e-4) for other in largest)
        assert findings["score_p_value"] > 1 / 5  # it is one of them


def test_pictures_have_rates_and_scores_but_no_millilitres(tmp_path, capsys):
    scans = [_scan(seed, (30, 40)) for seed in range(3)]
    settings, detector = _calibrated(tmp_path, scans)
    assert settings["volume_thresholds"] == []
    assert len(settings["healthy_scans"]["scores"]) == 3
    assert bool((detector.thresholds != 0.5).all())
    assert " ml" not in capsys.readouterr().out


def test_a_volume_of_more_than_half_of_the_foreground_is_left_out_and_told(tmp_path, capsys):
    settings, _ = _calibrated(tmp_path, [_scan(0)], false_positive_volumes=[2, 100, 500])
    assert [one["ml_per_scan"] for one in settings["volume_thresholds"]] == [2]
    assert "No threshold for 100, 500 ml: a mean scan's foreground has 169" in (
        capsys.readouterr().out
    )
