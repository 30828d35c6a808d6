#!/usr/bin/env bash
# What a machine with NVIDIA GPUs makes of saff, in about eight minutes:
#
#     tools/gpu_check.sh PHOTOS [FOLDER]
#
# Installs this checkout into a new environment, labels 64 of the photographs, trains 60 steps on one
# GPU and on all of them, predicts on a GPU and on the CPUs, and prints the rates, how busy the GPUs
# were, the most memory that they used, and how far the predictions of both agree.
# It was written on a machine without a GPU and has not been run on one yet.
set -euo pipefail

photos=${1:?usage: tools/gpu_check.sh PHOTOS [FOLDER]}
folder=${2:-$(mktemp -d -t saff-gpu-XXXXXX)}
checkout=$(cd "$(dirname "$0")/.." && pwd)
command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: this machine has no NVIDIA GPU" >&2; exit 2; }
gpus=$(nvidia-smi --list-gpus | wc -l)
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
mkdir -p "$folder"

say() { printf '\n== %s\n' "$*"; }

# Runs a command beside a sampler of the GPUs; prints seconds, busy share and memory.
measured() {
    local name=$1 log start sampler
    shift
    log=$folder/$name.csv
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 >"$log" &
    sampler=$!
    start=$SECONDS
    "$@" || { kill "$sampler"; echo "FAILED: $name" >&2; exit 1; }
    kill "$sampler"
    awk -F', ' -v name="$name" -v seconds=$((SECONDS - start)) '
        { busy += $1; if ($2 > most) most = $2; n++ }
        END { printf "%s: %d s, GPUs busy %.0f %%, most memory %d MiB\n", name, seconds, n ? busy / n : 0, most }
    ' "$log"
}

say "installation"
python3 -m venv "$folder/venv"
export PATH=$folder/venv/bin:$PATH
pip install --quiet --constraint "$checkout/constraints.txt" "$checkout"
python - <<'PYTHON'
import torch

assert torch.cuda.is_available(), f"torch {torch.__version__} cannot use the GPU: see nvidia-smi"
print("torch", torch.__version__, [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())])
PYTHON
saff doctor --gpus "$gpus" || true

say "64 photographs, labelled on the CPUs"
mkdir -p "$folder/photos"
find "$photos" -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' \) | sort | head -64 |
    xargs -I{} cp {} "$folder/photos/"
echo '{"training": {"steps": 60, "batch_size": 16}}' >"$folder/config.json"
measured label saff label "$folder/photos" --output "$folder/one" --config "$folder/config.json"
cp -r "$folder/one" "$folder/all"

say "training: 60 steps of 16, on one GPU and on all $gpus"
measured train-one saff train --output "$folder/one" --config "$folder/config.json" --gpus 1
if [ "$gpus" -gt 1 ]; then
    measured train-all saff train --output "$folder/all" --config "$folder/config.json" --gpus "$gpus"
fi

say "prediction: on one GPU, and on the CPUs"
new=(--network "$folder/one" --images "$folder/photos" --config "$folder/config.json")
measured predict-gpu saff reinfer "${new[@]}" --output "$folder/gpu" --gpus 1
measured predict-cpu saff reinfer "${new[@]}" --output "$folder/cpu" --gpus 0

say "agreement of both"
python - "$folder" <<'PYTHON'
import sys

import numpy as np
import pyarrow.dataset as ds

from saff.images import decode_png

rows = [
    {r["image_id"]: r for r in ds.dataset(f"{sys.argv[1]}/{kind}/predictions", exclude_invalid_files=True).to_table().to_pylist()}
    for kind in ("gpu", "cpu")
]
assert rows[0].keys() == rows[1].keys() and rows[0], "both must hold the same images"
levels, ious = [], []
for name in rows[0]:
    one, other = (decode_png(r[name]["confidence"]).astype(int) for r in rows)
    levels.append(np.abs(one - other).max())
    masks = one >= 128, other >= 128
    union = (masks[0] | masks[1]).sum()
    ious.append((masks[0] & masks[1]).sum() / union if union else 1.0)
print(f"{len(ious)} images: IoU of the masks {np.mean(ious):.4f} (least {min(ious):.4f}), confidence apart by at most {max(levels)} of 255")
PYTHON
say "done; everything is in $folder"
