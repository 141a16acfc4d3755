"""Real data that comes with scikit-learn, for built-in demonstrations."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np


def digits_table() -> np.ndarray:
    """1797 x 65: the pixels, 0 to 16, of 8 x 8 handwritten digits, then the digit (UCI, Alpaydin & Kaynak 1998).

    Read from scikit-learn's own file if it is there, because importing scikit-learn takes as long as importing torch.
    """
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return np.column_stack([digits.data, digits.target])
