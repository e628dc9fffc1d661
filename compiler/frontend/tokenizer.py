"""The tokenizer of a model directory, as transformers' AutoTokenizer builds it.

A directory's tokenizer.json is not the whole tokenizer: tokenizer_config.json, added_tokens.json,
special_tokens_map.json and the tokenizer's class change it. So transformers builds it once, at
import, and a library carries the result: the `tokenizers` pipeline (tokenizer.json) and what
transformers decides outside of that pipeline (SETTINGS_FILE).

transformers sees copies of the files named below and nothing else: it cannot leave the directory,
reach the network or run code of the directory.
"""

import json
from pathlib import Path

from intformer import scratch
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend.folder import read_regular, reason
from intformer.frontend.sentence_settings import lower_cases
from intformer.ir.heads import FEATURES
from intformer.measure.float_model import quiet
from intformer.runtime.edge import SETTINGS_FILE, Edge

JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARY_FILES = (  # any one of these makes a directory one that has a tokenizer
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
OTHER_FILES = ("merges.txt",)
WITHOUT_TYPES = ("distilbert", "modernbert", "eurobert")  # no table of token types
PROBES = (
    "",
    "The cat, sat.",
    " a  B c-d ",
    "Éé 中文 ß ﬁ 123 \u200d😀",
    "[MASK] <mask> [SEP] </s> <pad>",
)
STOPS = (KeyboardInterrupt, SystemExit)
HINT = "save a fast tokenizer in the directory, or pass --tokenizer FILE (a tokenizer.json)"


def tokenizer_files(checkpoint) -> dict[str, bytes]:
    """Return tokenizer.json and SETTINGS_FILE of a Checkpoint; empty where it has no tokenizer.

    `checkpoint.tokenizer`, a tokenizer.json, replaces the directory's pipeline, used as it is. The
    settings outside of the pipeline are still the directory's, do_lower_case of its
    sentence_bert_config.json too.
    Raises CheckpointError for a tokenizer that transformers cannot build as a fast one, that needs
    code of the directory, or that has ids beyond the model's word embeddings.
    """
    given = checkpoint.tokenizer
    if given is not None and not given.is_file():
        raise CheckpointError("no such tokenizer file", where=str(given))
    if given is None and not any(checkpoint.file(name) for name in VOCABULARY_FILES):
        return {}
    pipeline = _checked(given, read_regular(given)) if given is not None else None
    tokenizer = _built(checkpoint, pipeline)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    if lower_cases(checkpoint):
        _lower_case(backend)
    if pipeline is None:
        pipeline = backend.to_str().encode()
    elif lower_cases(checkpoint):
        pipeline = _lower_cased(pipeline)
    settings = {
        "token_type_ids": "token_type_ids" in tokenizer.model_input_names
        and checkpoint.config.get("model_type") not in WITHOUT_TYPES
        and checkpoint.takes_types
        and checkpoint.config.get("type_vocab_size") != 0,
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "mask_token": str(tokenizer.mask_token) if tokenizer.mask_token is not None else None,
    }
    files = {"tokenizer.json": pipeline, SETTINGS_FILE: json.dumps(settings).encode()}
    _check_templates(json.loads(pipeline).get("post_processor"), str(given or checkpoint.path))
    _check_ids(checkpoint, pipeline)
    if given is None:
        _check_equal(checkpoint, tokenizer, files)
    return files


def _built(checkpoint, pipeline: bytes | None):
    """Return the transformers tokenizer of the directory, or of its settings and `pipeline`."""
    about = _json_object(checkpoint, "tokenizer_config.json")
    if pipeline is None:
        return _built_as(checkpoint, about, None)
    try:
        return _built_as(checkpoint, about, pipeline)
    except CheckpointError:  # the class is what the given file replaces: its settings remain
        about = {k: v for k, v in about.items() if k != "auto_map"}
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
        return _built_as(checkpoint, about, pipeline)


def _built_as(checkpoint, about: dict, pipeline: bytes | None):
    """Build with `about` in the place of tokenizer_config.json."""
    if about.get("auto_map"):
        raise CheckpointError(
            "tokenizer_config key 'auto_map': the tokenizer is code of the directory, "
            "which is never run",
            where=str(checkpoint.path / "tokenizer_config.json"),
            hint=HINT,
        )
    from transformers import AutoTokenizer, TokenizersBackend

    quiet()
    with scratch.folder() as folder:
        _copy(checkpoint, about, pipeline, Path(folder))
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except STOPS:
            raise
        except BaseException as error:  # a panic of tokenizers is no Exception
            own = Path(folder) / "tokenizer.json"
            if own.is_file():
                _checked(checkpoint.path / "tokenizer.json", own.read_bytes())
            why = reason(error).replace(str(folder), str(checkpoint.path))
            raise CheckpointError(
                f"cannot build the tokenizer: {why}", where=str(checkpoint.path), hint=HINT
            ) from error
    if not isinstance(tokenizer, TokenizersBackend):
        raise CheckpointError(
            f"tokenizer class {type(tokenizer).__name__} runs in Python and has no fast form",
            where=str(checkpoint.path),
            hint=HINT,
        )
    return tokenizer


def _copy(checkpoint, about: dict, pipeline: bytes | None, folder: Path) -> None:
    """Write what transformers may read. Settings that name files by path are left out."""
    config = {k: v for k, v in checkpoint.config.items() if k != "auto_map"}
    objects = {name: _json_object(checkpoint, name) for name in JSON_FILES[1:]}
    objects["tokenizer_config.json"] = {k: v for k, v in about.items() if not k.endswith("_file")}
    objects["config.json"] = config
    for name, value in objects.items():
        if value:
            (folder / name).write_text(json.dumps(value), encoding="utf-8")
    if pipeline is not None:
        (folder / "tokenizer.json").write_bytes(pipeline)
        return
    for name in (*VOCABULARY_FILES, *OTHER_FILES):
        if (data := checkpoint.read(name)) is not None:
            (folder / name).write_bytes(data)


def _json_object(checkpoint, name: str) -> dict:
    return checkpoint.read_json(name, dict) or {}


def _checked(file: Path, data: bytes) -> bytes:
    """Return a file's bytes once `tokenizers` has accepted them."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(data.decode())
    except STOPS:
        raise
    except BaseException as error:
        raise CheckpointError(f"not a tokenizer.json: {reason(error)}", where=str(file)) from error
    return data


def _check_templates(processor: dict | None, where: str) -> None:
    """Refuse a template of special tokens that it does not define.

    `tokenizers` panics when it is used, and prints a stack trace.
    """
    processor = processor or {}
    for inner in processor.get("processors", ()):
        _check_templates(inner, where)
    known = processor.get("special_tokens", ())
    for piece in (*processor.get("single", ()), *processor.get("pair", ())):
        token = piece.get("SpecialToken", {}).get("id")
        if token is not None and token not in known:
            raise CheckpointError(
                f"the tokenizer's post_processor uses {token!r}, which it does not define",
                where=where,
                hint=HINT,
            )


def _lower_case(tokenizer) -> None:
    """Put lower-casing before a Tokenizer's own normalizer, as sentence-transformers does."""
    from tokenizers import normalizers

    own = tokenizer.normalizer
    steps = list(own) if isinstance(own, normalizers.Sequence) else [own] * (own is not None)
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _lower_cased(pipeline: bytes) -> bytes:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(pipeline.decode())
    _lower_case(tokenizer)
    return tokenizer.to_str().encode()


def _check_ids(checkpoint, pipeline: bytes) -> None:
    """Refuse a tokenizer that can give an id which the word embeddings do not have."""
    from tokenizers import Tokenizer

    rows = checkpoint.config.get("vocab_size")
    if type(rows) is not int:  # reported where the model is read
        return
    tokens = Tokenizer.from_str(pipeline.decode()).get_vocab(with_added_tokens=True)
    beyond = sorted((number, token) for token, number in tokens.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise CheckpointError(
            f"tokenizer has token {token!r} = id {number}, config key 'vocab_size' = {rows}",
            where=str(checkpoint.tokenizer or checkpoint.path),
            hint=f"{len(beyond)} ids have no embedding: remove the tokens, or resize the model "
            "(resize_token_embeddings) and save it again",
        )


def _check_equal(checkpoint, tokenizer, files: dict[str, bytes]) -> None:
    """Refuse a tokenizer class that does more than its pipeline and the settings say."""
    meta = {"head": FEATURES.name, "max_length": 64}
    try:
        edge = Edge(meta, files)
        for rows in ([(t,) for t in PROBES], [(t, PROBES[1]) for t in PROBES]):
            columns = map(list, zip(*rows, strict=True))
            want = tokenizer(*columns, truncation=True, max_length=64)
            got = edge.sequences(rows)
            types = want.get("token_type_ids") if edge.sends_types else None
            if [ids.tolist() for ids, _ in got] != want["input_ids"] or (
                types is not None and [one.tolist() for _, one in got] != types
            ):
                raise CheckpointError(
                    f"tokenizer class {type(tokenizer).__name__} gives other ids than its pipeline",
                    where=str(checkpoint.path),
                    hint=HINT,
                )
    except (IntformerError, *STOPS):
        raise
    except BaseException as error:
        raise CheckpointError(
            f"the tokenizer does not run: {reason(error)}",
            where=str(checkpoint.path),
            hint=HINT,
        ) from error
