# SPDX-License-Identifier: Apache-2.0
"""The library under the sanitizers: no bad address, no undefined behaviour, no race."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "gemmary" / "native" / "src"
PROGRAMS = ("exercise", "exercise_tokens", "fuzz_open")
FLAGS = {
    "kernels_avx2": "-mavx2 -mfma -mf16c",
    "kernels_avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni",
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
    common = f"-std=c11 -g {effort} -fopenmp-simd -DGEMMARY_X86 -DRANDOM_INPUTS=500 -fsanitize={sanitizer}".split()
    common.append("-fno-sanitize-recover=all")
    programs = [each for each in PROGRAMS if sanitizer != "thread" or each != "fuzz_open"]  # which has one thread
    compiled: dict[str, str] = {}
    for source in [*SOURCES.glob("*.c"), *(HERE / f"{program}.c" for program in programs)]:
        if source.stem == "kernels_neon":
            continue
        compiled[source.stem] = str(tmp_path / f"{source.stem}.o")
        flags = [*common, *FLAGS.get(source.stem, "").split(), f"-I{SOURCES}"]
        subprocess.run([compiler, *flags, "-c", str(source), "-o", compiled[source.stem]], check=True)
    objects = [path for stem, path in compiled.items() if stem not in PROGRAMS]
    for program in programs:
        binary = str(tmp_path / program)
        subprocess.run([compiler, *common, compiled[program], *objects, "-lm", "-lpthread", "-o", binary], check=True)
        done = subprocess.run([binary], capture_output=True, text=True)
        assert done.returncode == 0, program + done.stdout[-2000:] + done.stderr[-4000:]
