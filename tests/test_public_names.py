"""What `import srr_stream` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import srr_stream


@pytest.mark.parametrize("name", srr_stream.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(srr_stream, name).__name__ == name


def test_every_name_that_is_offered_is_public() -> None:
    offered = [name for names in srr_stream._HOMES.values() for name in names]
    assert sorted(offered) == sorted(srr_stream.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = srr_stream.Nonsense


def test_checking_settings_does_not_wait_for_the_learning_libraries() -> None:
    code = (
        "import sys; from srr_stream.cli import main; main(['check-config', '-c', 'configs/quickstart.yaml'], "
        "standalone_mode=False); heavy = {'torch', 'sklearn', 'scipy', 'kafka', 'river'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
