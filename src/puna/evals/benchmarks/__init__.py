"""The benchmarks, one file for each set or family. A module offers them as `BENCHMARKS`."""
