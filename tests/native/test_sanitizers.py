# SPDX-License-Identifier: Apache-2.0
"""The library under the sanitizers: no bad address, no undefined behaviour, no race."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "gemmary" / "native" / "src"
PROGRAMS = ("exercise", "exercise_pages", "exercise_tokens", "fuzz_open")
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
SETS = {  # of options that a source is built with, where it is not built without any
    "kernels_avx2": ["-mavx2 -mfma -mf16c"],
    "kernels_avx512": [AVX512, AVX512 + " -mavx512bf16 -DGEMMARY_HALVES"],
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_sanitizer_finds_nothing(sanitizer: str, tmp_path: Path) -> None:
    """Addresses with clang where there is one, which finds more; races with the system's compiler."""
    clang = None if sanitizer == "thread" else shutil.which("clang")
    compiler = clang or shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler on x86-64")
    effort = "-O0" if clang else "-O1"  # clang takes a quarter of an hour for what it then unrolls
    common = f"-std=c11 -g {effort} -fopenmp-simd -fsanitize={sanitizer} -fno-sanitize-recover=all".split()
    common += ["-DGEMMARY_X86", "-DGEMMARY_AVX512BF16", "-DRANDOM_INPUTS=500"]
    programs = [each for each in PROGRAMS if sanitizer != "thread" or each != "fuzz_open"]  # which has one thread
    objects: list[str] = []
    for source in SOURCES.glob("*.c"):
        for options in SETS.get(source.stem, [""] if source.stem != "kernels_neon" else []):
            objects.append(str(tmp_path / f"{len(objects)}.o"))
            subprocess.run([compiler, *common, *options.split(), "-c", str(source), "-o", objects[-1]], check=True)
    for program in programs:
        binary = str(tmp_path / program)
        command = [compiler, *common, f"-I{SOURCES}", str(HERE / f"{program}.c"), *objects, "-lm", "-lpthread"]
        subprocess.run([*command, "-o", binary], check=True)
        done = subprocess.run([binary], capture_output=True, text=True)
        assert done.returncode == 0, program + done.stdout[-2000:] + done.stderr[-4000:]
