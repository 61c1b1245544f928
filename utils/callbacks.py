"""Hooks by v6.1's name, for programs written for it: `from utils.callbacks import Callbacks`.

Nothing in the project imports this file. `val.run(callbacks=...)` calls those that begin with on_val; training none.
"""

from collections.abc import Callable
from typing import Any

HOOKS = (
    *("on_pretrain_routine_start", "on_pretrain_routine_end", "on_train_start", "on_train_epoch_start"),
    *("on_train_batch_start", "optimizer_step", "on_before_zero_grad", "on_train_batch_end", "on_train_epoch_end"),
    *("on_val_start", "on_val_batch_start", "on_val_image_end", "on_val_batch_end", "on_val_end"),
    *("on_fit_epoch_end", "on_model_save", "on_train_end", "on_params_update", "teardown"),
)


class Callbacks:
    """Functions to be called at v6.1's hooks."""

    def __init__(self):
        self._callbacks: dict[str, list[dict[str, Any]]] = {hook: [] for hook in HOOKS}
        self.stop_training = False

    def register_action(self, hook: str, name: str = "", callback: Callable | None = None) -> None:
        """Adds a function to a hook. Raises ValueError for an unknown hook, or what cannot be called."""
        if hook not in self._callbacks or not callable(callback):
            raise ValueError(f"register_action takes a function for one of {', '.join(HOOKS)}, got {hook}, {callback}")
        self._callbacks[hook].append({"name": name, "callback": callback})

    def get_registered_actions(self, hook: str | None = None) -> Any:
        """Returns the functions of a hook, or of all."""
        return self._callbacks[hook] if hook else self._callbacks

    def run(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Calls the functions of a hook."""
        for action in self._callbacks[hook]:
            action["callback"](*args, **kwargs)
