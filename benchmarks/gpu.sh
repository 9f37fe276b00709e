#!/usr/bin/env bash
# On a machine with a GPU, PyTorch for CUDA, Triton and a C++ compiler, without a network, in under eight minutes:
# build the extensions in place, run the GPU's tests, measure, and leave a table and JSON.
#
#     benchmarks/gpu.sh [FOLDER]      results go to FOLDER, by default benchmarks/results
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$out"

MAX_JOBS=${MAX_JOBS:-$(nproc)} "$python" setup.py -q build_ext --inplace > "$out/gpu_build.txt" 2>&1 || {
  tail -30 "$out/gpu_build.txt"
  exit 1
}
rm "$out/gpu_build.txt"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || true
status=0
timeout 150 "$python" -m pytest -q tests/test_kernels.py -p no:cacheprovider ${GPU_TESTS:-} || status=1
timeout 240 "$python" benchmarks/bench_gpu.py --json "$out/gpu.json" --minutes 3.3 ${GPU_BENCH:-} | tee "$out/gpu.txt" || status=1
exit $status
