r"""Make I-BERT checkpoints with transformers' own modules, as a user of I-BERT would.

There is no fine-tuned I-BERT checkpoint in any package, so `sst2` makes one: the weights of a
BERT-shaped encoder moved into IBertForSequenceClassification, fine-tuned in float (which
calibrates the ranges), then with quant_mode on. `random_model` makes small ones of odd shapes.

    PYTHONPATH=tests/support python -m intformer_testing.make_ibert \
        BERT_DIR SST2_TRAIN_TSV SST2_DEV_TSV OUT_DIR
"""

import argparse
import csv
import json
import random
import shutil
import time
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BertModel,
    IBertConfig,
    IBertForMaskedLM,
    IBertForQuestionAnswering,
    IBertForSequenceClassification,
    IBertForTokenClassification,
    IBertModel,
)

HEADS = {
    "features": IBertModel,
    "sequence-classification": IBertForSequenceClassification,
    "token-classification": IBertForTokenClassification,
    "question-answering": IBertForQuestionAnswering,
    "masked-lm": IBertForMaskedLM,
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def move_bert(source: Path, labels: list[str]) -> IBertForSequenceClassification:
    """Return a float I-BERT classifier whose encoder computes what the BERT in `source` does.

    I-BERT counts positions from pad + 1, so the position table moves down by pad + 1 rows.
    """
    bert = BertModel.from_pretrained(source, add_pooling_layer=False)
    config, shift = bert.config, bert.config.pad_token_id + 1
    model = IBertForSequenceClassification(
        IBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=config.max_position_embeddings + shift,
            type_vocab_size=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=config.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            quant_mode=False,
        )
    )
    state = bert.state_dict()
    positions = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = torch.cat(
        [positions.new_zeros(shift, positions.shape[1]), positions]
    )
    own = model.ibert.state_dict()
    extra = set(state) - set(own)
    if extra - {"embeddings.position_ids", "embeddings.token_type_ids"}:
        raise ValueError(f"no place in I-BERT for {sorted(extra)}")
    own.update({key: value for key, value in state.items() if key in own})
    model.ibert.load_state_dict(own)
    return model


def feature_gap(source: Path, model: IBertForSequenceClassification, texts: list[str]) -> float:
    """Return max |difference| of the last hidden states of `source` and `model`, in float."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    bert = BertModel.from_pretrained(source, add_pooling_layer=False).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = bert(**batch).last_hidden_state
        ours = model.eval().ibert(**batch).last_hidden_state
    return float(((ours - theirs).abs() * batch["attention_mask"][..., None]).max())


def tame_layernorms(model: torch.nn.Module) -> int:
    """Raise |gamma| to what the integer LayerNorm can hold; return how many channels it moved.

    I-BERT adds floor(beta / gamma) inside 32 bits, so |beta / gamma| must stay below sqrt(n); some
    pretrained channels are dead (gamma near 0). Fine-tuning follows.
    """
    moved = 0
    for name, module in model.named_modules():
        if name.endswith("LayerNorm"):
            gamma, beta = module.weight.data, module.bias.data
            least = torch.clamp(beta.abs() * 2 / len(gamma) ** 0.5, min=1e-3)
            small = gamma.abs() < least
            gamma[small] = torch.where(gamma[small] < 0, -least[small], least[small])
            moved += int(small.sum())
    return moved


def read_tsv(path: Path) -> list[tuple[str, int]]:
    """Return (sentence, label) rows of a GLUE file with those two columns."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def batches(tokenizer, rows, size: int, max_length: int, shuffle: random.Random | None = None):
    """Yield padded batches with labels; with `shuffle`, rows of like length in random order."""
    rows = list(rows)
    if shuffle:
        shuffle.shuffle(rows)
        rows = sorted(rows, key=lambda row: len(row[0].split()) + 3 * shuffle.random())
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    if shuffle:
        shuffle.shuffle(chunks)
    for chunk in chunks:
        batch = tokenizer(
            [text for text, _ in chunk],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        batch["labels"] = torch.tensor([label for _, label in chunk])
        yield batch


def train(model, tokenizer, rows, *, epochs, rate, size=32, max_length=64, seed=0, say=print):
    """Fine-tune in place: AdamW, no decay, 6 % warm-up, linear to 0, embeddings frozen."""
    weights = [p for name, p in model.named_parameters() if "_embeddings." not in name]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    steps = epochs * -(-len(rows) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / (0.06 * steps + 1), (steps - i) / steps)
    )
    shuffle, step, start = random.Random(seed), 0, time.perf_counter()
    model.train()
    for _ in range(epochs):
        for batch in batches(tokenizer, rows, size, max_length, shuffle):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step % 25 == 0:
                elapsed = time.perf_counter() - start
                say(f"  step {step}/{steps}  loss {loss.item():.3f}  {elapsed:.0f} s")


@torch.no_grad()
def accuracy(model, tokenizer, rows, *, size=32, max_length=128) -> float:
    """Return the share of `rows` whose label the model finds."""
    model.eval()
    right = 0
    for batch in batches(tokenizer, rows, size, max_length):
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(1) == labels).sum())
    return right / len(rows)


def save(model, source: Path, out: Path) -> None:
    """Write a plain Hugging Face directory with the tokenizer of `source`."""
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def sst2(source: Path, train_tsv: Path, dev_tsv: Path, out: Path, *, rows=8000, say=print) -> dict:
    """Fine-tune `source` on SST-2 as an I-BERT checkpoint in `out`; return what was measured.

    Float first, which calibrates every range but the softmax's; then quant_mode on from the saved
    float checkpoint, at a tiny rate, which calibrates the rest and grows LayerNorm's shifts.
    """
    start = time.perf_counter()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    chosen = [row for row in read_tsv(train_tsv) if 4 <= len(row[0].split()) <= 40]
    chosen = random.Random(0).sample(chosen, rows)
    dev = read_tsv(dev_tsv)

    model = move_bert(source, ["negative", "positive"])
    figures = {
        "float feature gap to the source": feature_gap(source, model, [dev[0][0], dev[1][0]])
    }
    figures["layernorm channels raised"] = tame_layernorms(model)
    say(f"float fine-tuning, {rows} rows")
    train(model, tokenizer, chosen, epochs=1, rate=8e-5, say=say)
    figures["float accuracy"] = accuracy(model, tokenizer, dev)
    say(f"float accuracy {figures['float accuracy']:.4f}")

    save(model, source, out)
    tame_layernorms(model)
    config = IBertConfig.from_pretrained(out, quant_mode=True)
    state = model.state_dict()
    model = IBertForSequenceClassification(config)
    model.load_state_dict(state)
    say("quant_mode fine-tuning")
    train(model, tokenizer, chosen[:2400], epochs=1, rate=2e-6, say=say)
    figures["quant_mode accuracy"] = accuracy(model, tokenizer, dev)
    figures["seconds"] = round(time.perf_counter() - start)
    save(model, source, out)
    (out / "made.json").write_text(json.dumps(figures, indent=1) + "\n")
    say(json.dumps(figures))
    return figures


def random_model(
    head: str = "sequence-classification",
    *,
    labels: int = 2,
    hidden: int = 48,
    layers: int = 2,
    heads: int = 4,
    ffn: int = 80,
    vocab: int = 61,
    positions: int = 40,
    types: int = 2,
    seed: int = 0,
    steps: int = 4,
):
    """Return a small I-BERT with random weights and calibrated ranges, quant_mode on, eval mode.

    The weights are wide enough that attention is not flat and every layer moves the features.
    """
    torch.manual_seed(seed)
    config = IBertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=positions,
        type_vocab_size=types,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        num_labels=labels,
        quant_mode=True,
    )
    model = HEADS[head](config).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "orm.weight" in name:  # LayerNorm and layer_norm; either sign
                weight.uniform_(0.5, 1.5)
                weight[::7] *= -1
            elif name.endswith("bias"):
                weight.normal_(0, 0.2)
            else:
                weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
        for _ in range(steps):
            ids = torch.randint(2, vocab, (4, positions // 2))
            model(ids, token_type_ids=torch.randint(0, types, ids.shape))
    return model.eval()


def main() -> None:
    """Make the SST-2 checkpoint from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "train_tsv", "dev_tsv", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rows", type=int, default=8000, help="training rows (8000)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sst2(args.source, args.train_tsv, args.dev_tsv, args.out, rows=args.rows)


if __name__ == "__main__":
    main()
