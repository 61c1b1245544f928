"""ExecuTorch's programs compute what PyTorch computes, and damaged ones are refused."""

import pytest
from export_job import assert_command_writes

from models.backend import Backend


@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_computes_what_pytorch_computes(weights, batch_size):
    assert_command_writes(weights, "executorch", "best.pte", batch_size=batch_size)


def test_an_executorch_file_that_is_damaged(here):
    pytest.importorskip("executorch.runtime")
    (here / "broken.pte").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"broken\.pte: ExecuTorch cannot read it"):
        Backend("broken.pte")
