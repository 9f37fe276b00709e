#!/usr/bin/env bash
# Builds the extensions in place, runs the GPU's tests and measures, in less than eight minutes (GPU_SECONDS, default 470).
# Needs a GPU, PyTorch for CUDA, Triton, pytest and a C++ compiler, but no network. Each part has a time limit, after
# which its results so far remain.
#
#     benchmarks/gpu.sh [FOLDER]      writes gpu_tests.txt, gpu.txt and gpu.json there (default: benchmarks/results)
#
# GPU_TESTS and GPU_BENCH hold further options of pytest and of bench_gpu.py.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
MAX_JOBS=${MAX_JOBS:-$(nproc)} timeout -k 5 140 "$python" setup.py -q build_ext --inplace > "$out/gpu_build.txt" 2>&1 || {
  tail -30 "$out/gpu_build.txt"
  exit 1
}
rm "$out/gpu_build.txt"
echo "built in $SECONDS s"

status=0
# Most of a test's time is Triton's compiler, on one core. So the tests run in several processes where pytest-xdist is
# installed, and the benchmark's kernels are compiled meanwhile. Warnings of another version of PyTorch are no failures.
workers=$("$python" -c "import xdist; print('-n 10')" 2>/dev/null)
for part in models compiled attention rows; do
  OMP_NUM_THREADS=1 timeout 90 "$python" benchmarks/bench_gpu.py --only $part --rounds 1 --minutes 1.4 > /dev/null 2>&1 &
done
OMP_NUM_THREADS=1 timeout -s INT -k 10 130 "$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default $workers \
  tests/ops/test_kernels.py tests/runtime/test_cuda_graphs.py -k "not gpu_that_is_not_there and not tiny_sizes" ${GPU_TESTS:-} \
  2>&1 | tee "$out/gpu_tests.txt" || status=1
kill $(jobs -p) 2> /dev/null
wait
echo "tested by $SECONDS s"
left=$((${GPU_SECONDS:-470} - SECONDS))
[ "$left" -ge 30 ] || left=30
timeout -k 5 $((left - 5)) "$python" benchmarks/bench_gpu.py --json "$out/gpu.json" \
  --minutes "$("$python" -c "print(($left - 15) / 60)")" ${GPU_BENCH:-} 2>&1 | tee "$out/gpu.txt" || status=1
echo "measured by $SECONDS s"
exit $status
