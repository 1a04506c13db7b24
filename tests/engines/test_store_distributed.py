"""Several processes on one folder: each embeds its share, and the model is that of one."""

import os

import pytest
import torch
import torch.distributed as dist
from oracle import clustered

from monai_dpmm.engines import distributed
from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.mixture.dpmm import DPMM

pytestmark = pytest.mark.slow  # processes of their own

D, SCANS = 8, 9


class Embedded:
    """Scans of 3 to 5 slices of 4 x 5 patches; notes which of them it has made."""

    def __init__(self):
        self.made = []

    def __call__(self, item):
        self.made.append(item["number"])
        slices = 3 + item["number"] % 3
        patches = clustered(slices * 20, D, 6, spread=0.3, seed=item["number"])
        return {"image": patches.view(slices, 4, 5, D).float()}


def trained(folder, *, keep):
    embedded = Embedded()
    items = [{"number": i} for i in range(SCANS)]
    data = StoredEmbeddings(items, embedded, folder, keep=keep)
    mixture = DPMM(D, 6, variance_floor=1e-3, initialization="k-means++").double()
    loader = SliceDataLoader(data, 8, shuffle=True)
    trainer = EMTrainer("cpu", 2, loader, mixture)
    trainer.run()
    return {
        "state": mixture.state_dict(),
        "made": embedded.made,
        "files": sorted(path.name for path in folder.glob("*")),
        "count": float(trainer.state.totals[1]),
    }


def worker(rank, world, folder):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    method = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world)
    result = {keep: trained(folder / f"store{keep}", keep=keep) for keep in (True, False)}
    torch.save(result, folder / f"rank{rank}.pt")
    distributed.close_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_one_store_many_processes(world, tmp_path):
    torch.multiprocessing.spawn(worker, (world, tmp_path), nprocs=world)
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=False) for i in range(world)]
    alone = trained(tmp_path / "alone", keep=True)
    for rank, result in enumerate(ranks):
        kept, streamed = result[True], result[False]
        assert kept["made"] == list(range(SCANS))[rank::world]
        assert {n for n in kept["files"] if n.endswith("safetensors")} == {
            n for n in alone["files"] if n.endswith("safetensors")
        }
        assert sorted(streamed["made"]) == sorted(2 * list(range(SCANS))[rank::world])
        assert streamed["files"] == []
        assert streamed["count"] == kept["count"] == alone["count"]
        for name, expected in alone["state"].items():
            torch.testing.assert_close(kept["state"][name], expected, rtol=1e-6, atol=1e-8)
            assert torch.equal(streamed["state"][name], ranks[0][False]["state"][name])
