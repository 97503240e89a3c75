"""What `natattn COMMAND --help` says, where it is not read from the configuration files."""

TRAIN_HELP = """\
usage: natattn train [key=value ...] [-m] [--cfg job] [--info]

Trains a reference arm (model=standard, optimizer from reference=) and a candidate arm (model=, optim=) from the same
initial weights on the same batches: language, or with task=vision and task=multimodal images and pairs of image and
caption. Everything lands in a folder under outputs/.

  -m, --multirun   a run for every combination of comma-separated values: optim=adamw,aif seed=0,1
  seeds=N          N seeds as one computation, each a run in a folder of its own: cheap for small models
  --cfg job        print the composed configuration (every key) and exit
  --info           Hydra's own information; --hydra-help: Hydra's own options
  resume=FOLDER    go on with an interrupted run, exactly

groups (group=option; * is the default):
"""

REPORT_HELP = """\
usage: natattn report [FOLDER ...] [output=FILE]

Prints the result table of run folders, sweep folders or globs (default: everything under outputs/). Several runs are
grouped by all settings except the seed, with mean and standard deviation over seeds. Two finished run folders are also
compared: identical to the bit, equal within rounding, or different, with a list of what differs.
Writes the same results to a page that opens offline, with intervals, curves, links to the runs, and any two of them
side by side.

  output=FILE   the page (default: report.html in the given folder; for several folders in outputs/)
"""

SAMPLE_HELP = """\
usage: natattn sample run=FOLDER [key=value ...]

  run=FOLDER         a finished run
  prompt=TEXT        text to go on from (default: the start of a document)
  arm=NAME           which arm (default: the candidate)
  tokens=100         how many tokens to write, as far as they fit into the model's context with the prompt
  temperature=0.8    0 takes the likeliest token every time
  top_k=50           choose among the likeliest tokens only; 0 for all
  seed=0
"""

ANALYZE_HELP = """\
usage: natattn analyze run=FOLDER [arm=NAME] [tower=vision|text] [key=value ...]
       natattn analyze init=pretrained init.path=FOLDER|FILE.gguf|HUB_NAME [data=text data.train=FILE] [key=value ...]
       natattn analyze runs=FOLDERS [baseline=NAME] [key=value ...]

Studies the attention of a trained arm, of any transformers decoder or encoder that dispatches attention by name, or
what several runs say together, and writes analysis.html (a page that opens offline), analysis.json and figures/ with a
CSV file beside each picture. Sections that are there already are kept; an interrupted analysis goes on when it is
started again.

sections of one model (sections=[heads,frozen] for some of them):
  heads        entropy, support, distance, sink, heat capacity, spread of energies and pattern rank of every head
  frozen       the scores at other temperatures: U, S, C, order parameter, susceptibility, correlation length, T_c
  propagated   the model with a temperature in every layer: the same, and the loss
  sizes        whether the peaks of C and of the susceptibility grow and sharpen with the context
  cascades     runs of unusual entropy along the text: sizes, power law, branching ratio, over thresholds
  spectra      eigenvalues of the attention matrices, their power laws, and those of shuffled entries
  fisher       how far A·Aᵀ, diagonals and Kronecker products are from attention's Fisher and the model's; conditioning
  gradients    gradient noise scale, over all parameters and by role (causal language models)
  patterns     mean patterns, their variability, and one head over real text
  hierarchy    attention inside the blocks of Python, HTML or a grammar's sentences, against the same blocks moved
  theorems     the papers' theorems, by number, with smallest counterexamples

sections of several runs (those that apply):
  curves       losses, gradient norms and differences over training, with bands over seeds
  comparison   paired differences to the baseline: final loss, time to target, pattern stability; Holm's intervals
  training     attention over training, and whether the heat capacity peaks before the loss falls
  widths       critical temperatures over models of several widths: exponents, and do the peaks grow and sharpen
  scaling      the best heads × head_dim at one number of parameters, over contexts and entropies

keys with their defaults (natattn train --help lists data, tokenizer and init):

"""

REPRODUCE_HELP = """\
usage: natattn reproduce study=NAME|NAME,NAME|all [budget=smoke|cpu|gpu] [key=value ...] [hydra/launcher=...]

Rebuilds tables and figures from runs: what is done counts, what is missing is trained, what broke off is resumed. Every
claim gets a verdict. Stop it at will and start it again.

studies:
{studies}
keys with their defaults:

{keys}
launchers (pip install natattn[joblib], natattn[ray] or natattn[slurm]):
  hydra/launcher=joblib hydra.launcher.n_jobs=4     processes on this machine; without one: one run after another
  hydra/launcher=ray                                a Ray cluster
  hydra/launcher=submitit_slurm                     Slurm; submitit_local tries it without
"""

DOCTOR_HELP = """\
usage: natattn doctor [quick=true]

Examines what natattn needs, and says for everything that is not well what to do about it: versions, processor, GPUs,
attention kernels, bfloat16, torch.compile, caches, room for runs, Weights & Biases (keys are never shown), the Hugging
Face Hub; and trains both arms for some seconds in a temporary folder: losses fall, metrics are written, resuming gives
the same numbers. Exit code 0 if all is well, 1 when something is broken.

  quick=true   without compiling and training
"""
