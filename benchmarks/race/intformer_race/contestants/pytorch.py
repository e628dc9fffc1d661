"""PyTorch FP32: eager, or compiled by Inductor with frozen weights."""

import os

from intformer_race.contestants import protocol

spec = protocol.spec
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    protocol.cache / f"inductor-{spec['isa']}-{spec['threads']}"
)
import torch  # noqa: E402

torch.set_num_threads(spec["threads"])
torch.set_num_interop_threads(1)
torch.set_grad_enabled(False)
model = protocol.float_model()
if spec["mode"] == "compile":
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model = torch.compile(model)
batches = [tuple(torch.from_numpy(array) for array in batch) for batch in protocol.padded()]
protocol.serve(
    lambda: [model(*batch) for batch in batches],
    {"version": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()},
    lambda results: results[0].logits[0],
)
