"""sentence-transformers: its backends torch (FP32) and openvino (INT8 by NNCF)."""

import json
import shutil
from pathlib import Path

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

from intformer_race.contestants import protocol
from intformer_text.contestants.turns import LONGEST, spec, take

CALIBRATION = 300  # texts, as many as its exporter takes by default
FILE = "openvino/openvino_model.xml"


def quantized() -> Path:
    """Return a directory whose OpenVINO model is INT8, as its static exporter makes it.

    That exporter downloads its calibration text; here NNCF gets the texts of spec["calibration"].
    """

    def make(folder: Path) -> None:
        import nncf
        import openvino

        model = SentenceTransformer(
            spec["source"], backend="openvino", model_kwargs={"export": True}
        )
        model.save_pretrained(str(folder))
        texts = json.loads(Path(spec["calibration"]).read_text())[:CALIBRATION]
        rows = [dict(model.tokenizer(text, truncation=True, max_length=LONGEST)) for text in texts]
        data = nncf.Dataset([{name: [ids] for name, ids in row.items()} for row in rows])
        graph = openvino.Core().read_model(folder / FILE)
        graph = nncf.quantize(
            graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts)
        )
        int8 = folder / "int8"
        openvino.save_model(graph, int8 / "openvino_model.xml", compress_to_fp16=False)
        for file in int8.iterdir():
            file.replace(folder / "openvino" / file.name)
        shutil.rmtree(int8)

    return protocol.artifact("sentence-transformers-openvino", make)


torch.set_num_threads(spec["threads"])
if spec["backend"] == "torch":
    model = SentenceTransformer(spec["source"])
else:
    settings = {"INFERENCE_NUM_THREADS": spec["threads"], "PERFORMANCE_HINT": "LATENCY"}
    model = SentenceTransformer(
        str(quantized()), backend="openvino", model_kwargs={"ov_config": settings}
    )
take(lambda texts: model.encode(texts, show_progress_bar=False), sentence_transformers.__version__)
