"""Run an encoder with OpenVINO, whose attention on CPUs is faster than torch's."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import logging

from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    from ml_filter.heads.model import HeadModel

_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoModel:
    """Token ids to scores: OpenVINO runs the encoder on as many threads as torch uses; torch runs the head in float32.

    Args:
        settings: more properties of OpenVINO, such as PERF_COUNT.

    Raises:
        ConfigError: OpenVINO is not installed, or it cannot run this encoder.
    """

    def __init__(self, model: HeadModel, dtype: torch.dtype, **settings: bool) -> None:
        self.model = model
        openvino = _import()
        try:
            compiled = openvino.Core().compile_model(
                _converted(model),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,  # several workers would all pin to the same cores
                    **settings,
                },
            )
        except Exception as error:  # OpenVINO raises many types for operations it does not know
            name = model.config.encoder_name or "this encoder"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"OpenVINO cannot run {name} ({reason}); use --engine torch") from error
        self.request = compiled.create_infer_request()

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores [batch, criteria], float32, not clamped."""
        return self.model.read(self.encode(input_ids, attention_mask))

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Input of the output layer, float32: embeddings [batch, width], or the scores of a published classifier."""
        outputs = self.request.infer([input_ids.numpy(), attention_mask.numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0])


def _import() -> Any:
    # OpenVINO sends telemetry when it is imported, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(
            f"--engine openvino needs the package openvino, which cannot be imported ({error}); install it, or use "
            "--engine torch"
        ) from error
    return openvino


class _Encode(nn.Module):
    def __init__(self, model: HeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode(input_ids, attention_mask)


def _converted(model: HeadModel) -> Any:
    """The encoder as an OpenVINO model, for batches of any shape."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tracing; the self-test compares the outputs
            decoder = TorchScriptPythonDecoder(_Encode(model).eval(), example_input=example)
            frontend = FrontEndManager().load_by_framework("pytorch")
            return frontend.convert(frontend.load(decoder))
    finally:
        logging.set_verbosity(verbosity)
