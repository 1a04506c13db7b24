"""Small data sets of slices, laid out as BMAD and MVTec AD lay out theirs."""

import numpy as np
from PIL import Image

BRATS = {
    "train": ("train/good", None),
    "val/good": ("valid/good/img", "valid/good/label"),
    "val/bad": ("valid/Ungood/img", "valid/Ungood/label"),
    "test/good": ("test/good/img", "test/good/label"),
    "test/bad": ("test/Ungood/img", "test/Ungood/label"),
}
LIVER = {
    "train": ("train/good", None),
    "val/good": ("valid/img/good", "valid/label/good"),
    "val/bad": ("valid/img/Ungood", "valid/label/Ungood"),
    "test/good": ("test/img/good", "test/label/good"),
    "test/bad": ("test/img/Ungood", "test/label/Ungood"),
}
RESC = {
    "train": ("Train/train/good", None),
    "val/good": ("Val/val/good", "Val/val_label/good"),
    "val/bad": ("Val/val/Ungood", "Val/val_label/Ungood"),
    "test/good": ("Test/test/good", "Test/test_label/good"),
    "test/bad": ("Test/test/Ungood", "Test/test_label/Ungood"),
}
MVTEC = {
    "train": ("train/good", None),
    "test/good": ("test/good", None),
    "test/bad": ("test/crack", "ground_truth/crack"),
}
LAYOUTS = {"brats2021": BRATS, "liver": LIVER, "resc": RESC, "mvtec": MVTEC}
COUNTS = {"train": 6, "val/good": 3, "val/bad": 2, "test/good": 3, "test/bad": 4}


def picture(seed, shape=(48, 64), lesion=None):
    """A bright disc with a texture; in a lesion, a checkerboard."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    disc = 150.0 * (x**2 + y**2 < rng.uniform(0.6, 0.8)) * (1 + 0.2 * np.sin(6 * x + seed))
    array = np.clip(disc + rng.normal(10, 3, shape), 1, 255).astype(np.uint8)
    if lesion is not None:
        array[lesion] = 255 * (np.indices(shape).sum(0)[lesion] // 2 % 2)
    return array


def write_tree(root, layout, *, counts=COUNTS, shape=(48, 64), mask_value=255):
    """A data set in one of `LAYOUTS`; healthy masks are written where the layout has them."""
    seed = 0
    for group, (images, masks) in LAYOUTS[layout].items():
        for number in range(counts[group]):
            name = f"P{seed:03}_{group.replace('/', '-')}_{number}"
            lesion = np.zeros(shape, bool)
            if group.endswith("bad"):
                lesion[20:34, 24:40] = True
            _save(root / images / f"{name}.png", picture(seed, shape, lesion))
            if masks is not None:
                ending = "_mask" if layout == "mvtec" else ""
                mask = (mask_value * lesion).astype(np.uint8)
                _save(root / masks / f"{name}{ending}.png", mask)
            seed += 1
    return root


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
