#!/usr/bin/env bash
# Paper F, empirical validation: errors of the Fisher approximations and conditioning, over training.
#   scripts/studies/fisher_validation.sh [key=value ...]
# → outputs/reproduce/fisher_cpu/tables/fisher_errors.{md,tex,csv}, fisher_conditioning.*, fisher_verdicts.*
set -euo pipefail
exec natattn reproduce study=fisher budget="${BUDGET:-cpu}" "$@"
