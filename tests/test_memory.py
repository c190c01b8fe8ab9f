# SPDX-License-Identifier: Apache-2.0
"""What a process holds after it has freed a large array."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import os
import sys
import numpy as np
from gemmary.base.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
large = np.ones(1 << 27, np.uint8)
del large
with open("/proc/self/statm", encoding="ascii") as file:
    print(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are told nothing")
def test_freed_memory_is_kept_only_where_told() -> None:
    def held(how: str) -> int:
        result = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return int(result.stdout)

    assert held("keep") - held("leave") == pytest.approx(128, abs=4)  # MiB
