# SPDX-License-Identifier: Apache-2.0
"""The library under the sanitizers: no bad address, no undefined behaviour, no race."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "gemmary" / "native" / "src"
FLAGS = {
    "kernels_avx2": "-mavx2 -mfma -mf16c",
    "kernels_avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni",
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_sanitizer_finds_nothing(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler on x86-64")
    common = f"-std=c11 -g -O1 -fopenmp-simd -DGEMMARY_X86 -fno-sanitize-recover=all -fsanitize={sanitizer}".split()
    compiled: dict[str, str] = {}
    mains = sorted(HERE.glob("exercise*.c"))
    for source in [*SOURCES.glob("*.c"), *mains]:
        if source.stem == "kernels_neon":
            continue
        compiled[source.stem] = str(tmp_path / f"{source.stem}.o")
        command = [compiler, *common, *FLAGS.get(source.stem, "").split(), f"-I{SOURCES}", "-c", str(source), "-o"]
        subprocess.run([*command, compiled[source.stem]], check=True)
    objects = [path for stem, path in compiled.items() if not stem.startswith("exercise")]
    assert len(mains) == 2
    for main in mains:
        program = str(tmp_path / main.stem)
        subprocess.run([compiler, *common, compiled[main.stem], *objects, "-lm", "-lpthread", "-o", program], check=True)
        done = subprocess.run([program], capture_output=True, text=True)
        assert done.returncode == 0, main.stem + done.stdout[-2000:] + done.stderr[-4000:]
