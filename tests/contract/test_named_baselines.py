"""An optimizer without its attention term equals its named baseline; invariances of the Fisher metric."""

import pytest
import torch
from trained import Trained, build_model, loss_of


def _weights(trained: Trained) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trained.model.parameters()]


def _after(name: str, *overrides: str, steps: int = 8) -> list[torch.Tensor]:
    trained = Trained(name, *overrides, dtype=torch.float64)
    trained.train(range(steps))
    return _weights(trained)


OFF = {
    "fisher_muon is per-head Muon on q and k": (
        ("fisher_muon", "optim.placebo=identity", "optim.directions.query.damping=1e-9",
         "optim.directions.key.damping=1e-9"),
        ("muon_per_head", "~optim.directions.value"),
    ),
    "natural_muon is whitened_muon": (
        ("natural_muon", "optim.placebo=plain", "optim.directions.value.per_head=false"),
        ("whitened_muon",),
    ),
    "aif is adamw": (("aif", "optim.directions.default.energy_scale=0"), ("adamw",)),
    "aif_update is adamw": (("aif_update", "optim.placebo=identity"), ("adamw",)),
    "muon_aif is muon": (("muon_aif", "optim.placebo=identity"), ("muon",)),
    "aif under a constant is adamw": (
        ("aif", "optim.placebo=constant", "optim.placebo_energy=3.0", "optim.directions.default.inner.eps=1e-12"),
        ("adamw", "optim.directions.default.eps=1e-12"),
    ),
    "aif_blend without its second part is adamw": (
        ("aif_blend", "optim.directions.query.blend=1e9", "optim.directions.key.blend=1e9", "optim.placebo=constant",
         "optim.placebo_energy=1.0"),
        ("adamw",),
    ),
    "multiscale with equal levels is fa_adam": (
        ("multiscale", "optim.directions.query.levels.damping=[0.3,0.3,0.3]",
         "optim.directions.key.levels.damping=[0.3,0.3,0.3]"),
        ("fa_adam",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("informed", "baseline"), OFF.values(), ids=OFF.keys())
def test_switched_off_it_is_its_baseline(informed, baseline):
    for ours, theirs in zip(_after(*informed), _after(*baseline), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["fisher_muon", "natural_muon", "fa_adam", "aif_update", "muon_aif", "newton_muon"])
def test_switched_on_it_is_not(name):
    baseline = {"fisher_muon": ("muon_per_head", "~optim.directions.value"), "natural_muon": ("whitened_muon",),
                "fa_adam": ("adamw",), "aif_update": ("adamw",), "muon_aif": ("muon",),
                "newton_muon": ("muon",)}  # fmt: skip
    pairs = zip(_after(name), _after(*baseline[name]), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-4


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_the_fisher_directions_are_equivariant(scale):
    """W_Q → cW_Q, W_K → W_K/c leaves the function unchanged; so does the step, up to its norm and the damping."""
    from natattn.optim.directions.whitened import refresh

    torch.manual_seed(0)
    heads, head_dim, width = 2, 4, 8
    gradient = torch.randn(heads * head_dim, width, dtype=torch.float64)
    outputs = [torch.randn(heads, d, d, dtype=torch.float64) for d in (head_dim, width)]
    output_factor, input_factor = (m @ m.mT + torch.eye(m.shape[-1], dtype=m.dtype) for m in outputs)
    direction = Trained("fisher_muon", "optim.directions.query.newton_schulz_dtype=own").settings.directions["query"]

    def update(c: float) -> torch.Tensor:
        # With W_Q scaled by c its gradient is divided by c; S_Q, of the keys, by c².
        state = {"failed": torch.zeros(())}
        refresh([state], "output_root", [output_factor / c**2], 0.1)
        refresh([state], "input_root", [input_factor], 0.1)
        roots = state["output_root"][None], state["input_root"][None]
        return direction.unscaled((gradient / c)[None], *roots, heads)[0]

    torch.testing.assert_close(update(scale), scale * update(1.0), rtol=1e-9, atol=0)


def test_soap_agrees_with_a_library():
    library = pytest.importorskip("pytorch_optimizer")
    from natattn.optim.directions.soap import Soap
    from natattn.optim.matrix import Matrix

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5))
    ours = weight.detach().clone()
    direction = Soap(betas=(0.9, 0.95), factor_decay=0.95, eps=1e-8, refresh_every=2, orthogonalise=False)
    reference = library.SOAP(
        [weight], lr=0.1, betas=(0.9, 0.95), shampoo_beta=0.95, weight_decay=0.0, precondition_frequency=2,
        max_precondition_dim=100, eps=1e-8, correct_bias=True, merge_dims=False, normalize_gradient=False,
    )  # fmt: skip
    matrix = Matrix("weight", weight, "mlp", state=direction.initial_state(ours))
    for step in range(9):
        gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)) * torch.arange(1.0, 6.0)
        weight.grad = gradient.clone()
        reference.step()
        matrix.gradient = gradient
        (update,) = direction.updates([matrix], None)
        ours -= 0.1 * update
        torch.testing.assert_close(ours, weight.detach(), atol=2e-4, rtol=1e-3, msg=f"step {step}")


@pytest.mark.parametrize(("name", "expected"), [("input_root", 6**-0.5), ("input_inverse", 1 / 6)])
def test_a_decomposition_that_fails_leaves_the_last_good_one_and_is_counted(name, expected):
    from natattn.optim.directions.whitened import refresh

    good = torch.eye(3)[None] * 4
    state = {"failed": torch.zeros((), dtype=torch.int64)}
    refresh([state], name, [good], 0.5)
    kept = state[name].clone()
    torch.testing.assert_close(kept, torch.eye(3)[None] * expected)
    refresh([state], name, [good * torch.nan], 0.5)
    assert torch.equal(state[name], kept)
    assert int(state["failed"]) == 1


def test_usable_outside_with_any_transformers_model():
    model = build_model("llama")
    trained = Trained("natural_muon", model=model)
    losses = [float(loss_of(model, 0).detach())]
    trained.train(range(20))
    losses.append(float(loss_of(model, 0).detach()))
    assert losses[1] < losses[0]
