"""What `prepare` returns: a plain torch module that trains simulated and evaluates in integers."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import nn

from intformer.errors import IntformerError
from intformer.frontend import sentence_settings, sentence_transformers
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.trained import CONFIG_KEY, RANGES_FILE, assemble
from intformer.ir import ranges as range_analysis
from intformer.ir.heads import head_of
from intformer.ir.model import IntModel
from intformer.qat import losses
from intformer.qat.dropout import dropout_of
from intformer.qat.fake_quant import gelu_tables
from intformer.qat.interpreter import TorchModel
from intformer.qat.packing import Tokens, pack
from intformer.qat.ranges import Ranges
from intformer.qat.simulate import Simulation
from intformer.qat.weights import LiveCheckpoint
from intformer.relay_ops import i_gelu

CARRIED = (  # what of the source directory a saved one keeps beside config and weights
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model"),
)


class Prepared(nn.Module, ABC):
    """A Hugging Face model whose forward pass is the quantized one.

    model   transformers' own module: it holds the float parameters, under their own keys
    meta    as IntModel.meta: head, labels, position_rule, ...
    config  transformers' configuration

    In train() the forward pass simulates the integers at the present ranges and lets the ranges
    learn. In eval() it computes the integers themselves, those of `int_model()`, and returns them
    times their scale.

    Several GPUs take a process each: DistributedDataParallel, where the ranges are those of the
    first process (recipe ibert needs find_unused_parameters=True, which a Trainer sets). Neither
    DataParallel nor gradient checkpointing works.
    """

    # `forward` takes any keyword, but a loss is the mean over its batch: transformers.Trainer shall
    # divide it by the steps it accumulates, instead of passing num_items_in_batch
    accepts_loss_kwargs = False

    def __init__(self, checkpoint: Checkpoint, model: nn.Module, meta: dict):
        """Hold the model; the recipe's subclass adds the rest."""
        super().__init__()
        self.checkpoint, self.model, self.meta = checkpoint, model, dict(meta)
        self.config = model.config
        self.carried = {
            name: data for name in CARRIED if (data := checkpoint.read(name)) is not None
        }
        sentence = sentence_transformers.files(checkpoint, head_of(meta))
        if sentence_settings.lower_cases(checkpoint) and not sentence:
            self.carried["tokenizer.json"] = checkpoint.files()["tokenizer.json"]
        self.carried |= sentence
        self._integer: tuple[tuple, TorchModel] | None = None

    # -- for the recipe to say --------------------------------------------------------------------

    @abstractmethod
    def int_model(self) -> IntModel:
        """Return the IntModel of the present parameters and ranges."""

    @abstractmethod
    def simulated(self, batch: dict, answers: dict):
        """Return what `forward` returns, of the training forward pass.

        batch, answers  the arguments of `forward` by name: the tokens; labels and positions
        """

    @abstractmethod
    def save_weights(self, directory: Path) -> None:
        """Write config, weights and ranges."""

    # -- forward ----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        labels=None,
        start_positions=None,
        end_positions=None,
        **_ignored,
    ):
        """Run a padded batch, as a Hugging Face model does.

        input_ids, attention_mask, token_type_ids, position_ids  int64 [B, S]; masked tokens cost
            nothing
        labels  int64 [B] or float32 [B] (sequence classification, regression), float32 [B, labels]
            (multi-label), int64 [B, S] with -100 for none (token classification)
        start_positions, end_positions  int64 [B] (question answering)
        Returns transformers' output class of the head: loss where labels are given, and logits
        float32 [B, labels], [B, S, labels] (0 at masked tokens), or start_logits and end_logits
        [B, S] (-1e4 there). Heads whose outputs are vectors return them as logits.
        """
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        answers = {
            "labels": labels,
            "start_positions": start_positions,
            "end_positions": end_positions,
        }
        if self.training or self.meta["nonlinear"] == "float":
            return self.simulated(batch, answers)
        tokens = pack(self.meta, **batch)
        integer = self.integer()
        rows = integer.run(tokens.inputs())[integer.model.output]
        rows = (rows.double() * integer.model.meta["output_scale"]).float()
        return self.output(rows, tokens, answers)

    def output(self, rows: torch.Tensor, tokens: Tokens, answers: dict):
        """Return what `forward` returns, of the head's rows, float32 [rows, channels]."""
        about = head_of(self.meta), rows, tokens, self.meta["problem_type"]
        return losses.output(*about, **answers)

    def values(
        self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None
    ) -> dict[str, torch.Tensor]:
        """Return every integer of a batch by the name of its value, int64 [rows, channels].

        The rows are packed: those of IntModel.run for the same tokens.
        """
        tokens = pack(self.meta, input_ids, attention_mask, token_type_ids, position_ids)
        return self.integer().run(tokens.inputs(), keep=True)

    def integer(self) -> TorchModel:
        """Return int_model() on the device, made anew only where something has changed."""
        state = tuple((t.data_ptr(), t._version) for t in (*self.parameters(), *self.buffers()))
        if self._integer is None or self._integer[0] != state:
            model = self.int_model()
            range_analysis.check(model)
            self._integer = state, TorchModel(model, self.device)
        return self._integer[1]

    def train(self, mode: bool = True):
        """Switch; what evaluation kept is dropped."""
        if mode:
            self._integer = None
        return super().train(mode)

    def activation_checkpointing_enable(self, **_options):
        """Refuse: a pass that is run again would take its values into the ranges again."""
        raise IntformerError(
            "a prepared model has no gradient checkpointing",
            hint="leave gradient_checkpointing out; gradient_accumulation_steps saves memory too",
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    def _replicate_for_data_parallel(self):
        """Refuse: copies of nn.DataParallel have no parameters, and their ranges are lost."""
        raise IntformerError(
            "a prepared model does not train under nn.DataParallel, which a Trainer uses where it "
            "sees several GPUs",
            hint="start a process per GPU (torchrun), or set CUDA_VISIBLE_DEVICES=0",
        )

    # -- saving -----------------------------------------------------------------------------------

    def numpy_checkpoint(self) -> Checkpoint:
        """Return the source's configuration with the present parameters, float32."""
        weights = {
            name: p.detach().float().cpu().numpy() for name, p in self.model.state_dict().items()
        }
        return self.checkpoint.with_weights(weights)

    def save_pretrained(self, directory: str | Path, **_options) -> None:
        """Write a Hugging Face directory: weights, config, ranges, tokenizer.

        AutoModelFor... loads it as a float model, import_model and `intformer compile` with its
        ranges.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_weights(directory)
        for name, data in self.carried.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


class PreparedNative(Prepared):
    """Recipe native.

    nonlinear  "integer", or "float", which no integer program is
    weights    "channel" or "tensor"; Q8BERT is "float" with "tensor", see prepare
    """

    def __init__(self, checkpoint, model, head: str | None, nonlinear: str, weights: str, ranges):
        """Take a Ranges for the encoder of `model`."""
        graph, meta = read_encoder(checkpoint, head)
        super().__init__(checkpoint, model, {**meta, "nonlinear": nonlinear})
        first = self.meta["pad_token_id"] + 1 if self.meta["position_rule"] == "padding" else 0
        self.meta["position_count"] = first + self.meta["max_length"]
        self.weights = weights
        self.ranges: Ranges = ranges
        self.dropout = dropout_of(checkpoint, graph)
        used = {node.attrs["function"] for node in graph.of_kind("act")} & i_gelu.FUNCTIONS.keys()
        self.forms = sorted({i_gelu.FUNCTIONS[function][0] for function in used})
        for form in self.forms:
            self.register_buffer(f"gelu_{form}", gelu_tables(form), persistent=False)

    def simulated(self, batch: dict, answers: dict):
        """See Prepared."""
        tokens = pack(self.meta, **batch)
        device = tokens.ids.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        half = half if half is torch.bfloat16 else None  # float16 overflows, see fake_quant
        tables = {form: getattr(self, f"gelu_{form}") for form in self.forms}
        with torch.autocast(device, enabled=False):
            live = LiveCheckpoint(self.checkpoint, self.model)
            graph, _ = read_encoder(live, self.meta["head"])
            rows = Simulation(
                graph,
                self.ranges,
                tables,
                self.weights,
                self.meta["nonlinear"] == "integer",
                half,
                self.training,
                self.dropout,
            ).run(tokens)
        return self.output(rows, tokens, answers)

    def int_model(self) -> IntModel:
        """See Prepared; compile makes the same of the saved directory."""
        if self.meta["nonlinear"] == "float":
            raise IntformerError(
                "a model prepared with nonlinear='float' is no integer program",
                hint="prepare it with nonlinear='integer'",
            )
        return assemble(
            self.numpy_checkpoint(), self.ranges.arrays(), self.weights, self.meta["head"]
        )

    def save_weights(self, directory: Path) -> None:
        """Write config, weights and ranges."""
        from safetensors.numpy import save_file

        about = {"recipe": "native", "weights": self.weights, "nonlinear": self.meta["nonlinear"]}
        setattr(self.config, CONFIG_KEY, about)
        self.model.save_pretrained(directory)
        arrays = {k: np.ascontiguousarray(v) for k, v in self.ranges.arrays().items()}
        save_file(arrays, directory / RANGES_FILE)


class Answering:
    """Question answering: transformers.Trainer finds labels by a class's name and its forward."""

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        start_positions=None,
        end_positions=None,
        **_ignored,
    ):
        """See Prepared."""
        batch = input_ids, attention_mask, token_type_ids, position_ids
        positions = {"start_positions": start_positions, "end_positions": end_positions}
        return super().forward(*batch, **positions)


class PreparedNativeForQuestionAnswering(Answering, PreparedNative):
    """Recipe native."""
