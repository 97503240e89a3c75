"""The smallest runs of the tasks beside language."""

SMALL = (
    "size.n_layer=2",
    "size.n_embd=16",
    "size.n_head=2",
    "tracker=off",
    "train.batch_size=8",
    "train.steps=6",
    "train.evaluate_every=3",
    "train.checkpoint_every=2",
    "train.log_every=2",
    "train.device=cpu",
    "schedule.warmup_fraction=0.3",
)
TASKS = {
    "vision": ["task=vision", *SMALL],
    "multimodal": [
        "task=multimodal", *SMALL, "tokenizer=byte", "data.train_pairs=64", "data.validation_galleries=1",
        "data.test_galleries=1",
    ],
}  # fmt: skip
