"""Statistics over several ranks: two processes with half of the batch each know what one with all of it knows."""

import json
import os
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing

from natattn.attention.probe import AttentionProbe
from natattn.attention.quantities import QUANTITIES

ALL = tuple(QUANTITIES)


def _model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def _tokens() -> torch.Tensor:
    return torch.randint(20, (5, 12), generator=torch.Generator().manual_seed(0))


def _observe(tokens: torch.Tensor) -> AttentionProbe:
    model = _model()
    with AttentionProbe(model, quantities=ALL, row_count=None) as probe, probe.step(0), torch.no_grad():
        model(tokens)
    return probe


def _values(probe: AttentionProbe) -> list:
    return [[probe.statistics(layer)[name].tolist() for name in ALL] for layer in probe.layers]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    probe = _observe(_tokens()[:2] if rank == 0 else _tokens()[2:])
    probe.reduce()
    probe.reduce()  # a second call changes nothing
    (Path(folder) / f"{rank}.json").write_text(json.dumps(_values(probe)))
    torch.distributed.destroy_process_group()


def test_two_ranks_agree_with_one(tmp_path):
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    expected = torch.tensor(_values(_observe(_tokens())))
    for rank in (0, 1):
        actual = torch.tensor(json.loads((tmp_path / f"{rank}.json").read_text()))
        torch.testing.assert_close(actual, expected)


def test_without_a_process_group_nothing_changes():
    probe = _observe(_tokens())
    before = _values(probe)
    probe.reduce()
    assert _values(probe) == before
