import pytest
import torch

from monai_dpmm.network.thresholds import image_score, key_scores, order_keys, thresholds_at

RATES = torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("count", [100, 101, 999, 12_345])
def test_false_positives_never_exceed_the_rate_and_one_more_would(count):
    scores = torch.rand(count)
    for rate, threshold in zip(RATES.tolist(), thresholds_at(scores, RATES), strict=True):
        above = int((scores > threshold).sum())
        assert above == int(rate * count + 1e-9)


def test_ties_stay_on_the_safe_side():
    scores = torch.tensor([0.0] * 50 + [1.0] * 50)
    thresholds = thresholds_at(scores, RATES)
    assert ((scores > thresholds[:, None]).float().mean(1) <= RATES).all()


def test_shape_and_order_do_not_matter():
    scores = torch.rand(4, 10, 10)
    shuffled = scores.flatten()[torch.randperm(400)]
    assert torch.equal(thresholds_at(scores, RATES), thresholds_at(shuffled, RATES))


def test_image_score_is_the_mean_of_the_highest_percent():
    scores = torch.arange(1000.0).view(10, 100)
    assert image_score(scores) == torch.arange(990.0, 1000).mean()
    assert image_score(torch.tensor([1.0, 3.0])) == 3
    assert image_score(scores, 1.0) == scores.mean()


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="at least 100 healthy validation patches, got 99"):
        thresholds_at(torch.rand(99), RATES)
    with pytest.raises(ValueError, match="scores must be finite"):
        thresholds_at(torch.tensor([float("nan")] * 200), RATES)
    with pytest.raises(ValueError, match="scores must be finite and not empty, got 0"):
        thresholds_at(torch.empty(0), RATES)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        image_score(torch.rand(3), 0)
    with pytest.raises(ValueError, match="scores must not be empty"):
        image_score(torch.empty(0))


def test_keys_have_the_order_of_their_scores_and_give_them_back():
    scores = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-30, 30, (500,)), torch.zeros(1)])
    keys = order_keys(scores)
    assert torch.equal(keys.argsort(), scores.argsort())
    assert torch.equal(key_scores(keys), scores)
    assert int(order_keys(torch.tensor([-0.0]))) == int(order_keys(torch.tensor([0.0]))) == 0
