"""How far more RL compute, more data or a larger model gets: the law, its error bars, predictions and figures.

    runs = scaling.load(["runs/qwen-0.5b", "runs/qwen-1.5b", "runs/qwen-3b"])
    law = scaling.fit(runs, x="compute", bootstrap=2000)
    law.predict(72e9, 1e20)

Needs numpy, scipy and matplotlib, never jax. `python -m scaling` compares with the published fits of arXiv 2509.25300.
In a checkout that is not installed, `pip install numpy scipy matplotlib` is all that `python -m scaling` asks for.
"""

from scaling.extrapolation import Prediction
from scaling.law import Law, fit, fit_each, profile
from scaling.reading import load
from scaling.runs import Curve, DataError, Runs

__all__ = ["Curve", "DataError", "Law", "Prediction", "Runs", "fit", "fit_each", "load", "profile"]
