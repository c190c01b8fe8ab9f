# The gate is ./check; these are its names for fingers that type make.
.PHONY: check quick bench
check:
	./check
quick:
	./check quick
bench:
	.venv/bin/python benchmarks/startup.py
