#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build fuzz_open.c and the library with clang's fuzzer and sanitizers, and run it: ten minutes, or as arguments say.
set -eu
here=$(dirname "$0") out=build/fuzz
sources=$here/../../src/gemmary/native/src
flags="-g -fno-sanitize-recover=all -Wno-pass-failed"
fuzzer="-fsanitize=fuzzer,address,undefined"
cmake -S "$sources" -B $out -DCMAKE_C_COMPILER=clang \
    -DCMAKE_C_FLAGS="$flags -fsanitize=fuzzer-no-link,address,undefined"
cmake --build $out
clang $flags $fuzzer -std=c11 -Wall -Wextra -I"$sources" "$here/fuzz_open.c" $out/libgemmary.so \
    -Wl,-rpath,"$PWD/$out" -o $out/fuzz_open
mkdir -p $out/calls
exec $out/fuzz_open -timeout=60 -rss_limit_mb=4000 -max_len=2048 "${@:--max_total_time=600}" $out/calls
