"""One file per family of encoders: which weights it has, and how they are put together."""

from intformer.frontend.families.albert import ALBERT
from intformer.frontend.families.bert import BERT
from intformer.frontend.families.deberta import DEBERTA
from intformer.frontend.families.distilbert import DISTILBERT
from intformer.frontend.families.electra import ELECTRA
from intformer.frontend.families.eurobert import EUROBERT
from intformer.frontend.families.gte import GTE
from intformer.frontend.families.ibert import IBERT
from intformer.frontend.families.jina_bert import JINA_BERT
from intformer.frontend.families.jina_embeddings_v3 import JINA_EMBEDDINGS_V3
from intformer.frontend.families.modernbert import MODERNBERT
from intformer.frontend.families.mpnet import MPNET
from intformer.frontend.families.nomic_bert import NOMIC_BERT
from intformer.frontend.families.roberta import ROBERTA
from intformer.frontend.family import Family

FAMILIES: dict[str, Family] = {  # model_type of config.json (see hub_config.py) -> family
    "bert": BERT,
    "roberta": ROBERTA,
    "ibert": IBERT,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "albert": ALBERT,
    "mpnet": MPNET,
    "nomic_bert": NOMIC_BERT,
    "gte": GTE,
    "jina_embeddings_v3": JINA_EMBEDDINGS_V3,
    "jina_bert": JINA_BERT,
    "modernbert": MODERNBERT,
    "eurobert": EUROBERT,
    "deberta-v2": DEBERTA,
}
