"""Weights by place counted after the fit, against weights by place inside the E-step.

    python benchmarks/placed_steps.py demo/data/demo -f demo -c demo -s slice_step=4 --seeds 3

"after" is what training does: EM with the weights of all places together, counts of the components
at the places of all training patches once it is over. "inside" uses the weights of a patch's place
in every E-step after the first epoch, from moving averages of the counts like those of the other
moments; its counts are taken anew at the end, by such E-steps. Slices are taken along one axis.
Printed are nats a patch of healthy slices held out, without and with place, and AUPR over the
body's pixels of the test slices, smoothed and less the baseline: mean and lowest to highest of the
seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from truncation import aupr, cell, parsed

from monai_dpmm.app.options import add_settings
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.em import Moments, normalized
from monai_dpmm.mixture.place_choice import calibrate_places
from monai_dpmm.mixture.precision import full_float32
from monai_dpmm.study.embedded_dataset import EmbeddedDataset, embedded_dataset
from monai_dpmm.study.models.mixture import PLACED, MixtureModel

KINDS = ("cosine", "likelihood")
CHUNK = 2048  # patches, whose weights by place (n, K) are made at once
Placed = tuple[Sequence[Tensor], Sequence[Tensor]]


class PlacedModel(MixtureModel):
    """A mixture whose E-steps know places, from the second epoch on."""

    def fit_placed(self, slices: Placed) -> None:
        """Run all epochs; the last is kept."""
        grids, places = slices
        total = sum(int(grid.any(-1).sum()) for grid in grids)
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(self.seed + epoch)
            for batch in torch.randperm(len(grids), generator=generator).split(self.batch_size):
                own = [[of[i] for i in batch.tolist()] for of in (grids, places)]
                ((x, u),) = self._placed((own[0], own[1]))
                if not self.module.fitted:
                    self.module.initialize(x)
                if epoch == 0:
                    self.module.step(x)
                    continue
                moments, counts = placed_moments(self.module, x, u)
                self.module.m_step(moments)
                assert self.module.places is not None
                average, share = self.module.places.counts, self.options["step_size"]
                average.lerp_((counts * total / len(x)).float(), share)
            if epoch == 0:
                self.place(slices, slices)
        counts = torch.zeros(0)
        for x, u in self._placed(slices):
            part = placed_moments(self.module, x, u)[1]
            counts = part if len(counts) == 0 else counts + part
        assert self.module.places is not None
        self.module.places.counts.copy_(counts)

    def __init__(self, features: int, options: dict[str, Any], **training: Any) -> None:
        super().__init__(features, options, **training)
        self.options = options


@torch.no_grad()
def placed_moments(mixture: DPMM, x: Tensor, u: Tensor) -> tuple[Moments, Tensor]:
    """Moments of an E-step that knows places, and its counts n_bk: (K, G)."""
    places, covariance = mixture.places, mixture.covariance
    assert places is not None
    total: Moments | None = None
    counts = places.counts.new_zeros(places.counts.shape, dtype=torch.float64)
    with full_float32():
        density = covariance.density(mixture.offsets)
        table = places.table(mixture.log_weights).float()
        for part, at in zip(x.split(CHUNK), u.split(CHUNK), strict=True):
            phi = covariance.expand(part - mixture.origin)
            log_joint = density.log_prob(phi) + places.log_weights(table, at)
            r, log_likelihood = normalized(log_joint)
            first, second = covariance.moments(r, phi)
            count = mixture.concentration.new_full((), len(part))
            own = Moments(r.sum(0).double(), first, second, count, log_likelihood.double().sum())
            total = own if total is None else total + own
            counts += places.counted(at, r).double()
    assert total is not None
    return total, counts


def fits(dataset: EmbeddedDataset, args: Any) -> Iterator[dict[str, Any]]:
    """A record for every way and seed."""
    parser = args.parser
    own = ("_target_", "features", "planes", "seed")
    names = [name for name in parser["mixture"] if name not in own]
    options = {name: parser.get_parsed_content(f"mixture#{name}") for name in names}
    train, val = ((dataset.healthy(s), dataset.places(s)) for s in ("train", "val"))
    sigma = float(parser.get_parsed_content("smoothing_mm"))
    for seed in range(args.seeds):
        for way in ("after", "inside"):
            model = PlacedModel(train[0][0].shape[-1], options, epochs=args.epochs, seed=seed)
            if way == "after":
                model.fit(train[0], val[0])
                model.place(train, val)
            else:
                model.fit_placed(train)
            gain = calibrate_places(model.module, list(model._placed(val)))
            plain = model._log_likelihood(val[0])
            found = {kind: quality(model, PLACED + kind, dataset, val, sigma) for kind in KINDS}
            yield {"way": way, "seed": seed, "plain": plain, "placed": plain + gain, **found}


def quality(
    model: MixtureModel, kind: str, dataset: EmbeddedDataset, val: Placed, sigma: float
) -> float:
    """AUPR over the body's pixels of the test slices, maps smoothed and less the baseline."""
    pairs = zip(*val, strict=True)
    healthy = torch.cat([model.score(x[None], kind, u[None])[0][x.any(-1)] for x, u in pairs])
    every = argparse.Namespace(every=1, sigma=sigma)
    unit = 1e-3 * float(healthy.double().std())
    return aupr(lambda s: model.score(s.embeddings, kind, s.places), dataset, every, unit)


def main() -> None:
    """Fit, measure, print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="volumes, test scans with labels")
    add_settings(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fits", type=int, default=5, dest="epochs", help="epochs of a fit")
    parser.add_argument("--json", type=Path, help="file of all records")
    args = parser.parse_args()
    args.parser = parsed(args, args.dataset)
    records = []
    for record in fits(embedded_dataset(args.parser), args):
        records.append(record)
        print(record, flush=True)
        if args.json:
            args.json.write_text(json.dumps(records, indent=1))
    print("| weights by place | nats without | nats with place | AUPR, cosine | AUPR, likelihood |")
    print("|---|---|---|---|---|")
    for way in ("after", "inside"):
        rows = [r for r in records if r["way"] == way]
        nats = [cell([r[name] for r in rows], 2) for name in ("plain", "placed")]
        auprs = [cell([100 * r[kind] for r in rows], 1) for kind in KINDS]
        print(f"| {way} | {' | '.join([*nats, *auprs])} |")


if __name__ == "__main__":
    main()
