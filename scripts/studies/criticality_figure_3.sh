#!/usr/bin/env bash
# Paper K, figure 3: the best heads × head_dim over contexts and entropies.
#   scripts/studies/criticality_figure_3.sh [key=value ...]
# → outputs/reproduce/scaling_cpu/figures/scaling_*.png, tables/
set -euo pipefail
exec natattn reproduce study=scaling budget="${BUDGET:-cpu}" "$@"
