"""Losses and metrics of the tasks beside language, against closed forms and other programs."""

import math

import numpy as np
import pytest
import torch

from natattn.data.images import ImageSplit, PairSplit
from natattn.distributed.ranks import Ranks
from natattn.tasks.base import MetricSums, round_robin
from natattn.tasks.multimodal import chance as chance_of_pairs
from natattn.tasks.multimodal import contrastive_loss, gallery_metrics
from natattn.tasks.vision import CALIBRATION_BINS, Scaling, chance, classification_metrics, classification_sums


def test_accuracy_loss_and_calibration_of_a_made_split():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (400,), generator=generator)
    sums = MetricSums(torch.device("cpu"), Ranks())
    for start in range(0, 400, 90):
        sums.add(classification_sums(logits[start : start + 90], labels[start : start + 90]))
    found = classification_metrics(sums.read())
    probabilities = logits.softmax(-1).numpy()
    confidence, predicted = probabilities.max(-1), probabilities.argmax(-1)
    correct = predicted == labels.numpy()
    error = 0.0
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (confidence >= low) & (confidence < low + 1 / CALIBRATION_BINS)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    expected = {
        "loss": -np.log(probabilities[np.arange(400), labels.numpy()]).mean(),
        "accuracy": correct.mean(),
        "calibration_error": error,
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_certainty_is_in_the_last_bin():
    sums = classification_sums(torch.tensor([[1000.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert float(sums["bin_confidence"][-1]) == 1.0


def test_chance_of_classes_is_what_their_frequencies_reach():
    train = ImageSplit(np.zeros((8, 2, 2, 1), np.uint8), np.array([0, 0, 0, 0, 0, 1, 1, 2]))
    validation = ImageSplit(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 0, 1, 2]))
    found = chance(train, validation, 3)
    expected = -(2 * math.log(6 / 11) + math.log(3 / 11) + math.log(2 / 11)) / 4
    assert found == pytest.approx({"loss": expected, "accuracy": 0.5})


def test_standardised_pixels_have_mean_zero_and_variance_one():
    images = torch.randint(256, (20, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled = images.double() / 255
    mean, std = (tuple(values.tolist()) for values in (scaled.mean((0, 1, 2)), scaled.std((0, 1, 2), correction=0)))
    pixels = Scaling(mean, std, torch.float64).pixel_values(images)
    assert pixels.shape == (20, 3, 6, 6)
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(pixels.var((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_contrastive_loss_is_clips_where_all_pairs_differ():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrastive_loss(logits, torch.arange(7)), image_text_contrastive_loss(logits.T))


def test_contrastive_loss_takes_every_pair_of_a_group():
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups = torch.tensor([5, 9, 5, 2])
    total = 0.0
    for scores in (logits, logits.T):
        log_probabilities = scores.log_softmax(-1)
        rows = [-log_probabilities[i, groups == groups[i]].mean() for i in range(4)]
        total += float(torch.stack(rows).mean()) / 2
    assert float(contrastive_loss(logits, groups)) == pytest.approx(total, rel=1e-12)
    # The best that can be reached is the entropy of the target, not zero.
    same = torch.where(groups[:, None] == groups[None], 50.0, -50.0).double()
    assert float(contrastive_loss(same, groups)) == pytest.approx(0.5 * math.log(2), rel=1e-9)


def test_recalls_of_a_made_gallery():
    # Image i is nearest to caption order[i], then to the next one, and so on.
    order = torch.tensor([0, 2, 2, 3, 5, 5, 0])
    cosines = torch.zeros(7, 7, dtype=torch.float64)
    for i in range(7):
        for rank in range(7):
            cosines[i, (order[i] + rank) % 7] = 1 - rank / 10
    texts, numbers = torch.eye(7, dtype=torch.float64), torch.arange(7)
    found = gallery_metrics(cosines, texts, numbers, numbers, torch.ones(()))
    rank_of_own = [(i - int(order[i])) % 7 for i in range(7)]
    assert float(found["image_to_text_recall_1"]) == pytest.approx(np.mean([rank < 1 for rank in rank_of_own]))
    assert float(found["image_to_text_recall_5"]) == pytest.approx(np.mean([rank < 5 for rank in rank_of_own]))


def test_embeddings_in_bfloat16_are_compared_in_float32():
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(1, 32, generator=generator), dim=-1)
    images, texts = (
        torch.nn.functional.normalize(base + 0.05 * torch.randn(60, 32, generator=generator), dim=-1).bfloat16()
        for _ in range(2)
    )
    numbers, scale = torch.arange(60), torch.tensor(14.0)
    found = gallery_metrics(images, texts, numbers, numbers, scale)
    expected = gallery_metrics(images.double(), texts.double(), numbers, numbers, scale.double())
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )


def test_an_image_with_several_captions_is_looked_for_once():
    # Two images with three captions each; every caption is nearest to its own image.
    images = torch.eye(2, dtype=torch.float64).repeat_interleave(3, 0)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    found = gallery_metrics(images, images, groups, torch.tensor([0, 3]), torch.ones(()))
    assert {name: float(value) for name, value in found.items() if name != "loss"} == dict.fromkeys(
        [f"{way}_recall_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)], 1.0
    )


def test_chance_of_pairs_is_what_random_scores_reach():
    groups = np.repeat(np.arange(6), 3)
    split = PairSplit(
        images=np.zeros((6, 2, 2, 1), np.uint8), image_of=groups.copy(), tokens=np.zeros((18, 2), np.int64),
        lengths=np.full(18, 2), groups=groups, captions=("",) * 18,
    )  # fmt: skip
    expected = chance_of_pairs(split, np.arange(18))
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(0, 18, 3)
    draws = []
    for _ in range(400):
        left, right = (torch.randn(18, 64, generator=generator, dtype=torch.float64) for _ in range(2))
        left = left[torch.arange(0, 18, 3)].repeat_interleave(3, 0)  # captions of one image share its embedding
        draws.append(gallery_metrics(left, right, torch.from_numpy(groups), first, torch.zeros(())))
    for name, value in expected.items():
        seen = np.array([float(draw[name]) for draw in draws])
        assert seen.mean() == pytest.approx(value, abs=4 * seen.std() / 20 + 1e-9), name


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_take_turns_and_count_everything_once(size):
    counted = []
    lengths = []
    for rank in range(size):
        taken = list(round_robin(range(7), Ranks(rank, size)))
        lengths.append(len(taken))
        counted += [item for item, counts in taken if counts]
    assert sorted(counted) == list(range(7))
    assert len(set(lengths)) == 1
