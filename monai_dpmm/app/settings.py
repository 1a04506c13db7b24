"""The settings of the workflows: one row each, which all that is said of a setting follows from.

The configs hold the defaults as well, since MONAI reads nothing else; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping

from monai_dpmm.app import rules
from monai_dpmm.app.model_settings import MODEL_SECTIONS
from monai_dpmm.app.rules import Rule, Setting, choice, either, list_of
from monai_dpmm.io.suffixes import WRITTEN_SUFFIXES

__all__ = ["BESIDE", "CALIBRATED", "RENAMED", "SECTIONS", "SETTINGS", "TEXTS", "Setting"]


_RATE = Rule("0.01, 0.05 or 0.1", lambda v: v in (0.01, 0.05, 0.1))
_SIZE = Rule("native, 224 or 448", lambda v: str(v) in ("native", "224", "448"))
_LESION = Rule("positive or 255", lambda v: str(v) in ("positive", "255"))

SECTIONS: Mapping[str, tuple[Setting, ...]] = {
    "Where things are": (
        Setting("bundle_root", ".", rules.TEXT, "folder of `models` and `output`; `-f`"),
        Setting(
            "dataset_dir",
            "$@bundle_root + '/data'",
            rules.TEXT,
            "healthy scans, or a data set; for inference a scan or a folder",
            default_text="`data` in it",
        ),
        Setting(
            "pattern",
            None,
            either(rules.TEXT, rules.NONE),
            "of the names of scans, such as `'*_T1w.nii.gz'`, or of their paths below the data set"
            " where it has a `/`; null takes all",
        ),
        Setting(
            "output_dir",
            "$@bundle_root + '/output'",
            rules.TEXT,
            "results",
            default_text="`output` in it",
        ),
        Setting(
            "ckpt_dir",
            "$@bundle_root + '/models'",
            rules.TEXT,
            "`model.pt` and `model.json`",
            default_text="`models` in it",
        ),
        Setting(
            "embedding_dir",
            "$@bundle_root + '/embeddings'",
            rules.TEXT,
            "embeddings of the scans, each made once and read by every later training, `compare`,"
            " `calibrate` and `evaluate`; `monai-dpmm embeddings` shows and clears it",
            default_text="`embeddings` in it",
        ),
        Setting(
            "checkpoint",
            "$@ckpt_dir + '/checkpoint.pt'",
            rules.TEXT,
            "what an interrupted training goes on from",
            default_text="`checkpoint.pt` in `ckpt_dir`",
        ),
        Setting(
            "device",
            "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
            rules.DEVICE,
            "`-s device='$torch.device(\"cuda:1\")'` chooses one of several",
            default_text="CUDA where there is one, else the CPU",
        ),
    ),
    **MODEL_SECTIONS,
    "Embeddings": (
        Setting(
            "keep_embeddings",
            True,
            rules.FLAG,
            "keep those of training scans in `embedding_dir`; otherwise every epoch embeds them"
            " again, see [large data sets](scale.md). `calibrate` and `evaluate` read what is"
            " there, and keep what they embed where it is set for them",
        ),
        Setting(
            "embedding_dtype",
            "float32",
            choice("float32", "float16"),
            "of what is kept; `float16` is half the size, and another one embeds anew",
        ),
        Setting(
            "embedding_limit_gb",
            None,
            either(rules.POSITIVE, rules.NONE),
            "what `embedding_dir` may hold at most, in 10^9 bytes",
        ),
    ),
    "Training": (
        Setting("batch_size", 12, rules.COUNT, "slices in a batch"),
        Setting("max_epochs", 40, rules.COUNT, "passes over the healthy slices"),
        Setting(
            "val_interval",
            1,
            rules.COUNT,
            "epochs between validations, the best of which is kept; the last epoch is always"
            " validated",
        ),
        Setting("seed", 0, rules.NATURAL, "of the split, the start and the order"),
        Setting("resume", False, rules.FLAG, "go on from `checkpoint`; `--resume`"),
        Setting(
            "overwrite",
            False,
            rules.FLAG,
            "let a new model take the place of an earlier one, which is kept as `earlier-1`"
            " otherwise; `--overwrite`",
        ),
        Setting(
            "warm_start",
            None,
            either(rules.TEXT, rules.NONE),
            "a `model.pt` to start from instead of patches",
        ),
        Setting("revive", True, rules.FLAG, "give its vanished components new places"),
    ),
    "Threshold and findings": (
        Setting(
            "false_positive_rate",
            None,
            either(_RATE, rules.NONE),
            "share of the healthy foreground above the mask's threshold; null is"
            " `false_positive_volume`, and 0.01 for pictures, which have no ml",
        ),
        Setting(
            "false_positive_volume",
            2,
            either(rules.POSITIVE, rules.NONE),
            "ml of false positives in a healthy scan, one of those calibrated; the default gives"
            " way to a rate of 0.01 where none was",
        ),
        Setting(
            "false_positive_volumes",
            [1, 2, 5, 10, 20, 50],
            list_of("a list of numbers above 0", rules.POSITIVE),
            "what `calibrate` finds thresholds for",
        ),
        Setting(
            "leave_one_out",
            None,
            either(rules.FLAG, rules.NONE),
            "calibrate on the training scans as well, each by the model without it; null where"
            " fewer than 19 are held back",
        ),
        Setting(
            "min_lesion_ml",
            0.1,
            rules.NONNEGATIVE,
            "ml (pixels of a picture) that a lesion must have to be listed",
        ),
        Setting(
            "scan_score_fraction",
            0.001,
            rules.SHARE,
            "share of the foreground's scores, the highest, whose mean is the score of a scan",
        ),
        Setting("volume_thresholds", [], None, "what `calibrate` found; kept in `model.json`"),
        Setting("healthy_scans", None, None, "likewise, scores of healthy scans"),
        Setting("scan_reference", None, None, "likewise, of healthy scans as a whole"),
        Setting(
            "model_digest", None, None, "SHA-256 of `model.pt`, which `model.json` was written with"
        ),
        Setting(
            "origin",
            None,
            None,
            "where the model comes from: date, versions, number and kind of its scans; kept in"
            " `model.json`",
        ),
        Setting(
            "scan_false_alarm_rate",
            0.05,
            rules.SHARE,
            "of the warning that a scan is unlike the training data",
        ),
    ),
    "Output": (
        Setting("output_ext", ".nii.gz", choice(*WRITTEN_SUFFIXES), "of volumes"),
        Setting(
            "dicom_output",
            False,
            rules.FLAG,
            "also DICOM SEG and Parametric Map, for a DICOM series",
        ),
        Setting(
            "dicom_minimal",
            False,
            rules.FLAG,
            "DICOM results name patient and study only: no physician, institution, device, age or"
            " history",
        ),
        Setting(
            "displayable_configs",
            {
                "output": ["mask", "levels"],
                "false_positive_rate": "$monai_dpmm.rate_choices(@false_positive_rate)",
            },
            None,
            "what MONAI Label offers its users",
            default_text="mask or levels, and rates",
        ),
    ),
    "Evaluation": (
        Setting(
            "bootstrap",
            1000,
            rules.NATURAL,
            "resamples of the patients or images for the 95 % intervals, 0 for none",
        ),
        Setting(
            "evaluation_size",
            "native",
            _SIZE,
            "pixels at which maps and masks are compared; native is the mask's own size",
        ),
        Setting(
            "lesion_label",
            "positive",
            _LESION,
            "which grey levels of a mask are lesion: all above 0, or 255",
        ),
    ),
}
SETTINGS = {row.name: row for rows in SECTIONS.values() for row in rows}
TEXTS = {row.name for row in SETTINGS.values() if row.rule is rules.TEXT}  # as they are typed
# what `calibrate` adds to model.json
CALIBRATED = ("volume_thresholds", "healthy_scans", "scan_reference")
# what model.json holds besides remembered settings
BESIDE = (*CALIBRATED, "model_digest", "origin")
RENAMED = {  # names of one earlier version
    "covariance": "component_kind",
    "label_rule": "lesion_label",
    "protocol": "evaluation_size",
    "rate": "step_size",
    "smallest_lesion": "min_lesion_ml",
}
