"""The graphs of a stage, compiled for Ascend in MindSpore's dry run: no NPU is occupied and nothing is computed."""
