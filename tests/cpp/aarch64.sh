#!/bin/sh
# Both extensions compiled for aarch64 beside that machine's torch, and a check of them by qemu-user (check_aarch64.py).
#
# Needs g++-aarch64-linux-gnu, qemu-user, and `apt-get` of Debian 12, whose Python for aarch64 is unpacked into the build
# folder, not installed. PyPI's packages for aarch64 are unpacked beside it; its torch is the build for CUDA, whose
# libraries are replaced by stubs: nothing calls them. TORCH (2.13.0) chooses the version, BUILD the folder (1.5 GB).
set -eu
cd "$(dirname "$0")/../.."
BUILD=$(realpath -m "${BUILD:-build/cpp}")/aarch64
TORCH=${TORCH:-2.13.0}
ROOT=$BUILD/root SITE=$BUILD/site PACKAGES=$BUILD/packages
mkdir -p "$ROOT" "$SITE" "$PACKAGES" "$BUILD/objects"

# ---- that machine's Python, and its headers ----

# apt with lists of its own, so that this machine's apt goes on knowing one architecture
apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$BUILD/apt" \
        -o Dir::Cache="$BUILD/apt" -o Dir::State::status="$BUILD/apt/status" "$@"
}
if [ ! -x "$ROOT/usr/bin/python3.11" ]; then
    mkdir -p "$BUILD/apt/lists/partial" "$BUILD/apt/archives/partial"
    : >"$BUILD/apt/status"
    apt update
    (cd "$PACKAGES" && apt download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libbz2-1.0 liblzma5 libffi8 libssl3 \
        libsqlite3-0 libuuid1 libdb5.3 libncursesw6 libtinfo6 libreadline8 python3.11-minimal libpython3.11-minimal \
        libpython3.11-stdlib libpython3.11-dev)
    for package in "$PACKAGES"/*.deb; do dpkg -x "$package" "$ROOT"; done
fi
if [ ! -d "$SITE/torch" ]; then
    python3 -m pip install --quiet --target "$SITE" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 \
        --only-binary :all: --no-deps "torch==$TORCH" numpy typing_extensions sympy mpmath filelock jinja2 MarkupSafe \
        networkx fsspec packaging safetensors tqdm
fi

# ---- the extensions ----

CXX="$(command -v ccache || true) aarch64-linux-gnu-g++"
FLAGS="-O2 -std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -Werror -fopenmp -DTORCH_EXTENSION_NAME=_ops
    -DTORCH_API_INCLUDE_EXTENSION_H -DBERTNLI_TORCH_VERSION=\"$TORCH\" -isystem $SITE/torch/include
    -isystem $SITE/torch/include/torch/csrc/api/include -isystem $ROOT/usr/include/python3.11 -isystem $ROOT/usr/include"
export CXX FLAGS BUILD
for room in text ops; do
    find "csrc/$room" -name '*.cpp' | xargs -P 2 -I {} sh -c '
        object=$BUILD/objects/$(echo {} | tr / _).o
        [ "$object" -nt {} ] || $CXX $FLAGS -c {} -o "$object"'
    libraries="-L$SITE/torch/lib -ltorch_python -ltorch_cpu -lc10"
    [ $room = ops ] || libraries=
    aarch64-linux-gnu-g++ -shared "$BUILD/objects/csrc_${room}_"*.o $libraries -Wl,--allow-shlib-undefined \
        -o "$BUILD/_$room.cpython-311-aarch64-linux-gnu.so"
done
mkdir -p "$BUILD/checkout"
cp -r bertnli "$BUILD/checkout/"
rm -f "$BUILD/checkout/bertnli/"*.so
cp "$BUILD/"*.so "$BUILD/checkout/bertnli/"

# ---- stubs of CUDA's libraries, with the symbols and versions that torch asks for ----

LIBRARIES=$(find "$SITE/torch/lib" -name '*.so*')
CUDA='lib(cu|nccl|nvrtc|nvshmem)[^] ]*'
if [ ! -d "$BUILD/stubs" ]; then
    mkdir "$BUILD/stubs"
    for library in $LIBRARIES; do aarch64-linux-gnu-nm -D --undefined-only "$library"; done | sed 's/.* //; s/@.*//' |
        grep -E '^_*cu|^nccl|^nvrtc|^nvshmem|nvshmem' | sort -u |
        awk '{print "void* " $1 "(void) { static char none[64]; return none; }"}' >"$BUILD/stub.c"
    aarch64-linux-gnu-gcc -w -fno-builtin -fPIC -c "$BUILD/stub.c" -o "$BUILD/stub.o"
    for library in $LIBRARIES; do aarch64-linux-gnu-readelf -V "$library"; done |
        awk '/File:/ {sub(/.*File: /, ""); file = $1} /Name:/ {sub(/.*Name: /, ""); print file, $1}' >"$BUILD/versions"
    for library in $LIBRARIES; do aarch64-linux-gnu-readelf -d "$library"; done | grep NEEDED | grep -oE "$CUDA" | sort -u |
        while read -r name; do
            version=$(awk -v name="$name" '$1 == name && !/FORTRAN|fortran/ {print $2; exit}' "$BUILD/versions")
            echo "${version:-none} { global: *; };" >"$BUILD/map"
            aarch64-linux-gnu-gcc -shared "$BUILD/stub.o" -o "$BUILD/stubs/$name" -Wl,-soname,"$name" \
                ${version:+-Wl,--version-script="$BUILD/map"}
        done
fi

# ---- the check ----

OMP_NUM_THREADS=2 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$BUILD/checkout:$SITE" qemu-aarch64 -cpu max -L "$ROOT" \
    -E LD_LIBRARY_PATH="$BUILD/stubs" "$ROOT/usr/bin/python3.11" tests/cpp/check_aarch64.py
