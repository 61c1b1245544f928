"""What knows nothing of models: data, training, evaluation, export; and `notebook_init`, which v6.1 has here."""

from typing import Any


def notebook_init(verbose: bool = True) -> Any:
    """Logs the device, and returns IPython's `display` module; None outside of IPython. Nothing is installed."""
    from utils.device import select_device

    if verbose:
        select_device()
    try:
        from IPython import display
    except ImportError:
        return None
    return display
