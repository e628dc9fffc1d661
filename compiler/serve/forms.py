"""What requests hold, as Swagger shows it: those of text-embeddings-inference and of OpenAI."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Ids = list[StrictInt]
Inputs = StrictStr | Ids | list[StrictStr | Ids]
Pair = Annotated[list[StrictStr], Field(min_length=1, max_length=2)]
Name = Annotated[str | None, Field(description="a prompt of the model")]


class Form(BaseModel):
    """A request; `model` is one of several libraries, by the name of its file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: StrictStr | None = None


class Truncated(Form):
    """Texts that may be cut."""

    truncate: StrictBool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None


class EmbedForm(Truncated):
    """/embed."""

    inputs: Inputs
    prompt_name: Name = None
    normalize: StrictBool = True
    dimensions: StrictInt | None = None


class SparseForm(Truncated):
    """/embed_sparse."""

    inputs: Inputs
    prompt_name: Name = None


class PredictForm(Truncated):
    """/predict: a text, a pair [a, b], or a batch of [text] and [a, b]."""

    inputs: StrictStr | Pair | list[Pair]
    raw_scores: StrictBool = False


class RerankForm(Truncated):
    """/rerank."""

    query: StrictStr
    texts: list[StrictStr]
    raw_scores: StrictBool = False
    return_text: StrictBool = False


class SimilarityInputs(BaseModel):
    """What is compared with what."""

    source_sentence: StrictStr
    sentences: list[StrictStr]


class SimilarityOptions(BaseModel):
    """How."""

    model_config = ConfigDict(extra="forbid")
    truncate: StrictBool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    prompt_name: Name = None


class SimilarityForm(Form):
    """/similarity."""

    inputs: SimilarityInputs
    parameters: SimilarityOptions | None = None


class TokenizeForm(Form):
    """/tokenize."""

    inputs: StrictStr | list[StrictStr]
    add_special_tokens: StrictBool = True
    prompt_name: Name = None


class DecodeForm(Form):
    """/decode."""

    ids: Ids | list[Ids]
    skip_special_tokens: StrictBool = True


class AnswerForm(Truncated):
    """/answer: what predict() answers, for every head."""

    texts: list[StrictStr]
    pairs: list[StrictStr] | None = None


class EmbeddingsForm(BaseModel):
    """/v1/embeddings, as OpenAI has it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    input: Inputs
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    user: StrictStr | None = None
