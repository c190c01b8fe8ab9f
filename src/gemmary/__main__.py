# SPDX-License-Identifier: Apache-2.0
"""`python -m gemmary` is the command line."""

from gemmary.cli.main import main

if __name__ == "__main__":
    main()
