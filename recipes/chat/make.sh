#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the chat adapter anew: sh recipes/chat/make.sh OUTPUT [--from FOLDER]; OUTPUT/tuned/adapter is what it made.
# Needs `pip install 'gemmary[demo,jax,curves]'` and about 80 minutes on 2 cores. Run again, it goes on from where it was.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=${1:?expected an output folder: sh recipes/chat/make.sh OUTPUT [--from FOLDER]}
python "$here/data.py" "$@"
cp "$here/own.jsonl" "$here/recipe.toml" "$output"
cd "$output"
exec gemmary tune recipe.toml --backend jax
