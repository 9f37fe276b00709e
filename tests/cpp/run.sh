#!/bin/sh
# The C++ of the text stage alone, compiled with sanitizers: its tests, and fuzzing for so many seconds.
#
#   tests/cpp/run.sh                 tests under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer, and
#                                    the fuzzers' corpus under the first two
#   tests/cpp/run.sh plain           tests without a sanitizer
#   tests/cpp/run.sh fuzz 600        the libFuzzer targets, 200 seconds each; 77 where clang has no libFuzzer
#   tests/cpp/run.sh windows         compile it for Windows by MinGW; run its tests where Wine is
#   tests/cpp/run.sh aarch64         compile it for aarch64 and run its tests by qemu-user
#   tests/cpp/run.sh bindings 100    both extensions under AddressSanitizer + UndefinedBehaviorSanitizer, compiled by g++,
#                                    and 100 mutated calls of each function and operator (tests/fuzz/bindings.py)
#
# CXX (c++) and FUZZ_CXX (clang++) choose the compilers, BUILD the folder for what is built, PYTHON (python3) the Python.
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build/cpp}
CXX=${CXX:-c++}
FUZZ_CXX=${FUZZ_CXX:-clang++}
FLAGS="-std=c++20 -g -Wall -Wextra -Wno-unknown-pragmas -Werror -Icsrc/text -pthread"
SOURCES=$(ls csrc/text/*.cpp | grep -v bindings)
TARGETS="reader table tokenizer"
mkdir -p "$BUILD"

unpack_corpus() { # what earlier runs of the fuzzers found to reach new lines
    ${PYTHON:-python3} -m zipfile -e tests/cpp/corpus.zip "$BUILD/corpus"
}

tests() { # name, flags
    $CXX $FLAGS $2 tests/cpp/test_*.cpp $SOURCES -o "$BUILD/test_text_$1"
    "$BUILD/test_text_$1"
}

case ${1:-all} in
plain) tests plain -O1 ;;
all)
    tests address "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    tests thread "-O1 -fsanitize=thread"
    unpack_corpus
    for target in $TARGETS; do
        $CXX $FLAGS -O1 -fsanitize=address,undefined -fno-sanitize-recover=all "tests/cpp/fuzz_$target.cpp" \
            tests/cpp/replay.cpp $SOURCES -o "$BUILD/replay_$target"
        "$BUILD/replay_$target" "$BUILD/corpus/$target"/*
    done
    ;;
fuzz)
    if ! printf '#include <cstddef>\n#include <cstdint>\nextern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }' |
        $FUZZ_CXX -fsanitize=fuzzer -x c++ - -o "$BUILD/probe" 2>/dev/null; then
        echo "skipped: $FUZZ_CXX is missing or has no libFuzzer"
        exit 77
    fi
    unpack_corpus
    for target in $TARGETS; do
        [ $target = table ] && dictionary=reader || dictionary=$target
        $FUZZ_CXX $FLAGS -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all "tests/cpp/fuzz_$target.cpp" \
            $SOURCES -o "$BUILD/fuzz_$target"
        "$BUILD/fuzz_$target" -max_total_time=$((${2:-60} / 3)) -max_len=700 -print_final_stats=1 \
            -artifact_prefix="$BUILD/" "-dict=tests/cpp/$dictionary.dict" "$BUILD/corpus/$target"
    done
    ;;
windows)
    # MinGW's libraries of threads are POSIX's; programs for it are linked, and run where Wine is.
    x86_64-w64-mingw32-g++-posix $FLAGS -O0 -static tests/cpp/test_*.cpp $SOURCES -o "$BUILD/test_text.exe"
    if command -v wine64 >/dev/null; then wine64 "$BUILD/test_text.exe"; else echo "linked for Windows, not run: no Wine"; fi
    ;;
aarch64)
    aarch64-linux-gnu-g++ $FLAGS -O1 -static tests/cpp/test_*.cpp $SOURCES -o "$BUILD/test_text_aarch64"
    qemu-aarch64 "$BUILD/test_text_aarch64"
    ;;
bindings)
    checks="-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    CFLAGS=$checks LDFLAGS="-fsanitize=address,undefined" BERTNLI_OPTIMIZATION=-O1 ${PYTHON:-python3} setup.py -q build_ext \
        --build-lib "$BUILD/sanitized" --build-temp "$BUILD/sanitized/objects" >/dev/null
    (cd bertnli && find . -name '*.py') | while read -r file; do
        mkdir -p "$BUILD/sanitized/bertnli/$(dirname "$file")"
        cp "bertnli/$file" "$BUILD/sanitized/bertnli/$file"
    done
    # Python itself leaks; an allocation that is too large must fail as it does without a sanitizer.
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc OMP_NUM_THREADS=2 \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024 \
        UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$BUILD/sanitized:tests" \
        ${PYTHON:-python3} tests/fuzz/bindings.py "${2:-100}" "${3:-0}"
    ;;
*)
    sed -n '2,14p' "$0"
    exit 2
    ;;
esac
