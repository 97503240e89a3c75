"""The claims ledger: what the papers and the author's code say, as formulas, and how each is tested."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    Attributes:
        id: such as R1 or K3.
        statement: in one sentence, as the source means it.
        formula: as it is tested, in plain text.
        definition: what had to be chosen where the source leaves it open, and why; empty where nothing was.
        source: the paper or program, and where in it.
        study: the study that tests it; empty where none does yet.
    """

    id: str
    statement: str
    formula: str
    definition: str
    source: str
    study: str


README = "the author's README, Experimental Results"
PAPER_A = "paper A, Attention-Informed Optimization"
PAPER_F = "paper F, Attention as Natural Gradient"
PAPER_K = "paper K, Criticality and Phase Transitions"
NOTE_P = "note P, proofs"
NOTE_D = "note D, the Fisher decomposition"
_PAIRED = "paired by seed, data and initial weights"

_LEDGER = (
    Claim(
        "R1",
        "Attention-informed optimization converges faster.",
        f"log(steps of aif to L* / steps of AdamW) < 0, {_PAIRED}",
        "our definition: L* is the final validation loss of tuned AdamW with the same seed; steps are those of "
        "evaluations, and a run that does not reach L* counts with its last step",
        README,
        "claims",
    ),
    Claim(
        "R2",
        "Attention patterns are more stable in training.",
        f"log(D of aif / D of AdamW) < 0, D = mean JS(a_i at an evaluation, a_i at the one before), {_PAIRED}",
        "our definition: stability is the mean Jensen–Shannon divergence of the patterns of a fixed probe batch from "
        "one evaluation to the next, over layers, heads and sampled rows, in the second half of training; what is low "
        "is stable",
        README,
        "claims",
    ),
    Claim(
        "R3",
        "Perplexity in language modelling is better.",
        f"L(aif) < L(AdamW), {_PAIRED}; perplexity is exp L",
        "our definition: L is the validation loss at the last step in nats/token, each arm at the best learning rate "
        "of one grid, searched on other seeds",
        README,
        "claims",
    ),
    Claim(
        "R3p",
        "The author's headline: the natural block has the lower test loss.",
        "L_test(natural block with a causal mask) < L_test(standard), in the author's set-up",
        "our definition: as published the block has no causal mask and reads the token that it is asked to predict, "
        "so that its loss says nothing; the claim is tested on the same block with the mask",
        "the author's program and notebook",
        "published",
    ),
    Claim(
        "R4",
        "Training shows critical behaviour.",
        "log(step of the loss's fastest fall) − log(step of the peak of C) > 0",
        "our definition: a critical point of training that attention shows first, measured as K4; whether peaks over "
        "the temperature grow and sharpen with width and context, as those of a transition would, is shown beside it",
        README,
        "criticality",
    ),
    Claim(
        "A1",
        "The update that blends Adam with attention's gradient helps.",
        "L(aif_blend) < L(AdamW) for u = α·m̂/(√v̂ + ε) + (1 − α)·g_att, α = sigmoid(γ·mean E)",
        "our definition: g_att, which the paper leaves open, is the momentum of W_Q and W_K preconditioned by the "
        "Kronecker form of the attention-Fisher, at the norm of the Adam update; elsewhere plain Adam",
        f"{PAPER_A}, 3.2",
        "claims",
    ),
    Claim(
        "A2",
        "It needs no extra forward passes, and its overhead is negligible.",
        "log(t of aif / t of AdamW) < what is allowed, t = median seconds per step",
        "our definition: both arms take their steps in turn in one process; evaluation, checkpoints and data are left "
        "out; what counts as negligible is declared in the study's file before it is run",
        PAPER_A,
        "claims",
    ),
    Claim(
        "A3",
        "It holds for language, vision and multi-modal models.",
        f"L(aif) < L(AdamW) in each of the three, {_PAIRED}",
        "our definition: GPT-2 on text, a ViT on images, a contrastive pair of towers on images with captions; L is "
        "the last validation loss, each arm at the best learning rate of one grid, searched on another seed",
        PAPER_A,
        "modalities",
    ),
    Claim(
        "F1",
        "The Fisher information is about the mean of attention's outer products.",
        "F ≈ E[A Aᵀ]: min_c ‖c·A Aᵀ − F‖/‖F‖ over the keys; cosine and common top eigenspace",
        "our definition: F is the exact mean of diag(a) − aaᵀ over rows; ≈ means an error below 0.1, and less than "
        "that of the diagonal of mean attention, which knows no outer products. In W_Q the attention-Fisher and the "
        "model's own Fisher (labels drawn from the model) are shown beside it",
        PAPER_F,
        "fisher",
    ),
    Claim(
        "F2",
        "Attention is organised in hierarchical blocks.",
        "attention inside a text's blocks − inside the same blocks moved − what distance alone has > 0",
        "our definition: blocks are Python's classes, functions, blocks and statements, HTML's elements, a grammar's "
        "phrases; moved is turned round by random offsets; distance alone is the pattern of it that has the most",
        PAPER_F,
        "fisher",
    ),
    Claim(
        "F3",
        "The inverse Fisher is about I + A.",
        "F⁻¹ ≈ I + A: min_c ‖c(I + (A + Aᵀ)/2) − (F + λI)⁻¹‖/‖(F + λI)⁻¹‖",
        "our definition: F of scores has no inverse (F·1 = 0), so that it is damped by λ; A is made symmetric; "
        "≈ means an error below 0.1, and less than that of the identity alone",
        f"{PAPER_F}, theorem 3",
        "fisher",
    ),
    Claim(
        "F4",
        "Preconditioning by attention's Fisher conditions better.",
        "log(λ_max/mean λ of P^(−1/2)(F + δI)P^(−1/2)) − log(λ_max/mean λ of F + δI) < 0",
        "our definition: F is the attention-Fisher of W_Q, P its Kronecker form from the other half of the sequences; "
        "largest over mean eigenvalue, for the smallest is the damping δ",
        PAPER_F,
        "fisher",
    ),
    Claim(
        "F5",
        "Layers coarse-grain: what attention resolves grows with depth.",
        "slope over layers of log(mean of Σ_j a_ij |i − j|) > 0; effective rank by layer",
        "our definition: what is coarse attends far, in tokens; the effective rank (exp of the entropy of a pattern's "
        "singular values) is shown beside it, as the paper does not say where it should go",
        PAPER_F,
        "fisher",
    ),
    Claim(
        "K1",
        "Critical temperatures of heads fall with the width as a power.",
        "T_c(k) = T_0 (d/d_0)^(−α_k) with α_k > 0, over at least five widths d",
        "our definition: T_c is where the heat capacity C = Var(E)/T², or the susceptibility χ (n times the variance "
        "over sequences of the order parameter), peaks over T; k is all heads, a layer, or a rank within a layer; "
        "scans of frozen scores and of T in every layer are never mixed",
        f"{PAPER_K}, 3.2",
        "criticality",
    ),
    Claim(
        "K2",
        "Cascades of attention have power-law sizes with exponent 3/2.",
        "P(s) ∝ s^(−τ) exp(−s/s_c), τ ≈ 3/2",
        "our definition: a cascade is a maximal run of tokens at which any head's entropy is further from its mean "
        "than a threshold, its size the heads and tokens above it; τ by maximum likelihood with the cutoff, and ≈ "
        "means within 0.1, at every threshold; Clauset, Shalizi and Newman's (2009) p-value is shown beside it",
        PAPER_K,
        "criticality",
    ),
    Claim(
        "K3",
        "The best heads × head_dim grows as the square root of context times entropy.",
        "N·d = C·√(L·H(x)): log N·d = c + a log L + b log H with a = b = ½",
        "our definition: best is the vertex of a parabola in log N·d through the least losses of models with one "
        "number of parameters; H(x) is the entropy of the data in nats/token; ½ means within 0.1 of it",
        PAPER_K,
        "scaling",
    ),
    Claim(
        "K4",
        "Order parameter, ξ and χ show a transition: the heat capacity peaks before the loss drops.",
        "log(step of the loss's fastest fall) − log(step of the peak of C) > 0",
        "our definition: order parameter m = (Σ_j a_ij² − 1/n)/(1 − 1/n), ξ by the second moment of the mean attention "
        "over the lag, C as mean of heads and rows of a probe batch; fastest is per log step",
        PAPER_K,
        "criticality",
    ),
    Claim(
        "P1",
        "Energies are bounded by the inputs.",
        "Σ_h tr(E_h E_hᵀ) ≤ d·H·‖X‖_F⁴ for ‖W‖_F² = d",
        "our definition: both readings, W of all heads together and W of every head",
        NOTE_P,
        "theorems",
    ),
    Claim("P2", "Attention does not depend on the scale of its inputs.", "A(αX) = A(X)", "", NOTE_P, "theorems"),
    Claim("P3", "The pattern's Gram matrix is bounded below.", "λ_min(A Aᵀ) ≥ 1/L", "", NOTE_P, "theorems"),
    Claim(
        "P4",
        "Convergence is linear at a rate of η/L.",
        "‖x_t‖ ≤ (1 − η/L)^t ‖x_0‖",
        "our definition: gradient descent on ½ xᵀ A Aᵀ x with η = ½",
        NOTE_P,
        "theorems",
    ),
    Claim(
        "P5",
        "Attention tells at most log L of its inputs.",
        "I(X; A(X)) ≤ log L",
        "our definition: both readings, A(X) the row of numbers and the key that it draws",
        NOTE_P,
        "theorems",
    ),
    Claim(
        "P6",
        "The entropy of a pattern is bounded by its norm.",
        "H(A) ≤ ½‖A‖_F² + log L",
        "our definition: both readings, H of each row and of all rows together",
        NOTE_P,
        "theorems",
    ),
    Claim(
        "D3'",
        "Outer products are the Fisher at low temperature.",
        "E[A Aᵀ] = diag(a) − aaᵀ + O(τ)",
        "our definition: O(τ) is an error of at most 10 τ as τ falls to 0.01",
        NOTE_D,
        "theorems",
    ),
    Claim(
        "D4'",
        "The error of that is bounded by the entropy.",
        "‖aaᵀ − (diag(a) − aaᵀ)‖ ≤ C·H(a)",
        "our definition: C = 10⁶; a row with H(a) = 0 and an error needs no C",
        NOTE_D,
        "theorems",
    ),
    Claim(
        "D5'",
        "Scales far apart do not overlap.",
        "|⟨A_Λ1 A_Λ2⟩| ≤ C exp(−|Λ1 − Λ2|/ξ)",
        "our definition: A_Λ is A with every block of 2^Λ keys and queries replaced by its mean; C = 10, ξ = 1",
        NOTE_D,
        "theorems",
    ),
    Claim(
        "O1",
        "An attention-informed optimizer beats tuned AdamW and Muon.",
        f"L(natural_muon) < L(Muon), L(AdamW) and L of each of its placebos, {_PAIRED}",
        "our definition: validation loss at the last step, each arm tuned on one grid; placebos are its factors made "
        "constant, shuffled, or those of plain inputs",
        "ours",
        "optimizers",
    ),
)

CLAIMS: Mapping[str, Claim] = {claim.id: claim for claim in _LEDGER}
