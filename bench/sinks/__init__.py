"""Runs and results handed to other tools: TensorBoard, MLflow, Weights & Biases.

`run.py` has what a sink is told of a run, `sink.py` what a sink must do, and one file per tool does it. `following.py`
reads what runs write anyway, so that no run knows of a sink.
"""
