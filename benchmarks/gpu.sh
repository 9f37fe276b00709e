#!/usr/bin/env bash
# On a machine with a GPU, PyTorch for CUDA, Triton, pytest and a C++ compiler, without a network, in less than eight
# minutes (GPU_SECONDS, 470 by default): build the extensions in place, run the GPU's tests, measure, and leave what came
# of it in a folder. Each part has a limit of its own, and what it had found by then stays.
#
#     benchmarks/gpu.sh [FOLDER]      by default benchmarks/results: gpu_tests.txt, gpu.txt, gpu.json
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
# Most of a test's time is Triton's compiler, on one core: several processes where pytest-xdist is installed, and the
# benchmark's kernels are compiled meanwhile. What warns on another machine is no failure there, and what needs no GPU is
# tested elsewhere.
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
