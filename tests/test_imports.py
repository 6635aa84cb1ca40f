"""Nothing runs at import: every module imports without a network and without a home directory."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = Path(__file__).with_name("import_everything.py")


def import_all(*packages: str, home: str) -> int:
    environment = {"HOME": home, "XDG_CONFIG_HOME": home, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *packages], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def test_the_domain_imports_without_network_and_home():
    assert import_all("ml_filter", home="/nonexistent") > 30


def test_importing_the_domain_loads_neither_zenml_nor_configuration(tmp_path):
    code = "import ml_filter.cli, ml_filter.pipeline.config, sys; "
    code += "assert not {'zenml', 'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_steps_pipelines_and_tools_import_without_network_and_write_nothing(tmp_path):
    import_all("steps", "pipelines", "tools", home=str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()
