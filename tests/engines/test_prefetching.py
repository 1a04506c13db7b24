"""The next item is made while the one before is used; order, errors and ends stay as they are."""

import threading

import pytest
from monai.data import Dataset

from monai_dpmm.engines.prefetching import PrefetchingDataLoader, prefetched
from monai_dpmm.errors import InputError


def test_results_come_in_order_and_the_next_is_made_meanwhile():
    begun = [threading.Event() for _ in range(4)]

    def make(item):
        begun[item].set()
        assert threading.current_thread() is not threading.main_thread()
        return item * item

    found = []
    for item, result in enumerate(prefetched(make, range(4))):
        assert begun[min(item + 1, 3)].wait(10)
        assert not any(event.is_set() for event in begun[item + 2 :])  # one ahead, no more
        found.append(result)
    assert found == [0, 1, 4, 9]
    assert list(prefetched(make, [])) == []


def test_an_error_comes_after_the_results_before_it():
    def make(item):
        if item == 2:
            raise InputError("scan 2 is torn")
        return item

    found = []
    with pytest.raises(InputError, match="scan 2 is torn"):
        found.extend(prefetched(make, range(5)))
    assert found == [0, 1]


def test_a_reader_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    scans = prefetched(lambda item: item, range(100))
    assert next(scans) == 0
    scans.close()
    assert threading.active_count() == before


def _scan(item):
    if item["number"] == 3:
        raise InputError("scan 3 is torn")
    return item


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_epoch_of_a_loader_has_all_batches(count):
    loader = PrefetchingDataLoader(Dataset([{"number": i} for i in range(count)], _scan))
    for _ in range(2):
        assert [int(batch["number"]) for batch in loader] == [*range(count)]


def test_an_error_of_a_data_set_ends_the_epoch_of_its_loader():
    loader = PrefetchingDataLoader(Dataset([{"number": i} for i in range(6)], _scan))
    found = []
    with pytest.raises(RuntimeError, match="applying transform") as raised:  # as MONAI has it
        found.extend(int(batch["number"]) for batch in loader)
    assert found == [0, 1, 2]
    assert str(raised.value.__cause__) == "scan 3 is torn"
