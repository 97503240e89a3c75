"""Help texts. `train --help` also lists the groups of conf/, which are read from their files."""

HELP = """\
natattn: transformer training experiments in which attention informs the optimizer

usage: natattn COMMAND [key=value ...]

commands:
  train      train a standard and a natural-attention model side by side on the same batches
  report     print the result table of runs, write it to a page, and compare two runs
  analyze    study a model's attention: a page with its energies, temperatures, cascades and spectra
  reproduce  rebuild the papers' tables and figures, with seeds, intervals and a verdict for every claim
  sample     generate text with a trained arm of a run
  doctor     check this installation and machine, with advice for every problem

examples:
  natattn train model=natural optim=aif            the default: GPT-2 nano on Python's standard library
  natattn train size=pico data=text data.train=my.txt train.steps=500
  natattn train -m optim=adamw,aif seed=0,1        a sweep: four runs
  natattn train task=vision                        images instead of text; or task=multimodal
  natattn train resume=outputs/RUN                 resume an interrupted run
  natattn report outputs/RUN                       print its table again
  natattn report outputs/RUN outputs/OTHER         are the two runs identical, and if not, what differs?
  natattn sample run=outputs/RUN prompt="def "
  natattn analyze run=outputs/RUN                  attention as a statistical-mechanical system
  natattn reproduce study=all budget=smoke         a small version of every study, in minutes

natattn COMMAND --help prints more; natattn --version prints the version.
shell completion: eval "$(natattn -sc install=bash)" (or zsh: same line; fish: natattn -sc install=fish | source)
"""

TRAIN_HELP = """\
usage: natattn train [key=value ...] [-m] [--cfg job] [--info]

Trains a reference arm (model=standard, optimizer from reference=) and a candidate arm (model=, optim=) from the same
initial weights on the same batches: text, images (task=vision) or image-caption pairs (task=multimodal). All results
are written to a folder under outputs/.

  -m, --multirun   a run for every combination of comma-separated values: optim=adamw,aif seed=0,1
  seeds=N          N seeds stacked into one computation, each a run with its own folder: fast for small models
  --cfg job        print the composed configuration (every key) and exit
  --info           print Hydra's information; --hydra-help prints Hydra's options
  resume=FOLDER    resume an interrupted run exactly

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
  prompt=TEXT        text to continue (default: the start of a document)
  arm=NAME           which arm (default: the candidate)
  tokens=100         number of tokens to generate, limited by the model's context
  temperature=0.8    sampling temperature; 0 always takes the most likely token
  top_k=50           sample from the most likely tokens only; 0 for all
  seed=0
"""

ANALYZE_HELP = """\
usage: natattn analyze run=FOLDER [arm=NAME] [tower=vision|text] [key=value ...]
       natattn analyze init=pretrained init.path=FOLDER|FILE.gguf|HUB_NAME [data=text data.train=FILE] [key=value ...]
       natattn analyze runs=FOLDERS [baseline=NAME] [key=value ...]

Studies the attention of a trained arm, of any transformers decoder or encoder that dispatches attention by name, or of
several runs. Writes analysis.html (a page that opens offline), analysis.json and figures/ with a CSV file for each
figure. Finished sections are kept, so an interrupted analysis resumes when it is started again.

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

Rebuilds tables and figures from runs: finished runs are reused, missing ones are trained, interrupted ones are resumed.
Every claim gets a verdict. It can be stopped at any time and started again.

studies:
{studies}
keys with their defaults:

{keys}
launchers (pip install natattn[joblib], natattn[ray] or natattn[slurm]):
  hydra/launcher=joblib hydra.launcher.n_jobs=4     processes on this machine (default: one run after another)
  hydra/launcher=ray                                a Ray cluster
  hydra/launcher=submitit_slurm                     Slurm; submitit_local runs without Slurm
"""

DOCTOR_HELP = """\
usage: natattn doctor [quick=true]

Checks versions and imports of all packages, GPUs and attention, write access and room for outputs/ and the cache, and
trains both arms for a few steps in a temporary folder. Prints one line for each check, with advice for every problem.
Exit code 0 if nothing is broken, 1 otherwise.

  quick=true   skip training
"""
