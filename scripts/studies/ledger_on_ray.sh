#!/usr/bin/env bash
# Every study on a Ray cluster that is running (ray start --head), or on one of this machine's cores alone.
#   pip install 'natattn[ray]'    # in an environment of its own: it pins a cloudpickle that joblib does not take
#   RAY_ADDRESS=auto scripts/studies/ledger_on_ray.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
set -euo pipefail
exec natattn reproduce study=all budget="${BUDGET:-cpu}" wikitext="$1" hydra/launcher=ray "${@:2}"
