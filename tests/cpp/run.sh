#!/bin/sh
# The C++ of the text stage alone, compiled with sanitizers: its tests, and fuzzing for so many seconds.
#
#   tests/cpp/run.sh                 tests under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer
#   tests/cpp/run.sh plain           tests without a sanitizer
#   tests/cpp/run.sh fuzz 600        both libFuzzer targets, 300 seconds each; 77 where clang has no libFuzzer
#
# CXX (c++) and FUZZ_CXX (clang++) choose the compilers, BUILD the folder for what is built.
set -eu
cd "$(dirname "$0")/../.."
BUILD=${BUILD:-build/cpp}
CXX=${CXX:-c++}
FUZZ_CXX=${FUZZ_CXX:-clang++}
FLAGS="-std=c++20 -g -Wall -Wextra -Wno-unknown-pragmas -Werror -Icsrc/text -pthread"
SOURCES=$(ls csrc/text/*.cpp | grep -v bindings)
mkdir -p "$BUILD"

tests() { # name, flags
    $CXX $FLAGS $2 tests/cpp/test_*.cpp $SOURCES -o "$BUILD/test_text_$1"
    "$BUILD/test_text_$1"
}

case ${1:-all} in
plain) tests plain -O1 ;;
all)
    tests address "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    tests thread "-O1 -fsanitize=thread"
    ;;
fuzz)
    if ! printf '#include <cstddef>\n#include <cstdint>\nextern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }' |
        $FUZZ_CXX -fsanitize=fuzzer -x c++ - -o "$BUILD/probe" 2>/dev/null; then
        echo "skipped: $FUZZ_CXX is missing or has no libFuzzer"
        exit 77
    fi
    for target in reader tokenizer; do
        mkdir -p "$BUILD/corpus_$target"
        $FUZZ_CXX $FLAGS -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all "tests/cpp/fuzz_$target.cpp" \
            $SOURCES -o "$BUILD/fuzz_$target"
        "$BUILD/fuzz_$target" -max_total_time=$((${2:-60} / 2)) -max_len=700 -print_final_stats=1 \
            -artifact_prefix="$BUILD/" "-dict=tests/cpp/$target.dict" "$BUILD/corpus_$target"
    done
    ;;
*)
    sed -n '2,9p' "$0"
    exit 2
    ;;
esac
