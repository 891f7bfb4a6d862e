#!/bin/sh
# transformers 5: the tokenizers of ALBERT, BigBird, RemBERT, XLNet and Funnel make segment ids for pairs of texts, and do
# not hand them out unless asked, although their models have an embedding or a bias for them. BERT's hands them out.
# tokenizer(first, second) then trains such a model with segment 0 for both texts, without a warning.
# A good engineer would guess that a tokenizer returns what its own model takes.
#
# Seen with 5.23.0: unasked, BERT's gives [0, 0, 0, 0, 0, 1, 1, 1] and the other five nothing; asked, all tell the texts apart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
import transformers
from transformers import AlbertTokenizer, BertTokenizer, BigBirdTokenizer, FunnelTokenizer, RemBertTokenizer, XLNetTokenizer

WORDS = ("a", "good", "film", "dog")
PIECES = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
FUNNEL = {word: n for n, word in enumerate(("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>", *WORDS))}


def unigrams(*special):
    return [*((token, 0.0) for token in special), *((f"▁{word}", -2.0) for word in WORDS)]


MADE = {
    "bert": BertTokenizer(vocab=PIECES),
    "albert": AlbertTokenizer(vocab=unigrams("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "big_bird": BigBirdTokenizer(vocab=unigrams("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")),
    "rembert": RemBertTokenizer(vocab=unigrams("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "xlnet": XLNetTokenizer(vocab=unigrams("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")),
    "funnel": FunnelTokenizer(vocab=FUNNEL),
}
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
kept = []
for name, tokenizer in MADE.items():
    unasked = tokenizer("a good film", "a dog").get("token_type_ids")
    asked = tokenizer("a good film", "a dog", return_token_type_ids=True)["token_type_ids"]
    print(f"{name:9} unasked: {unasked}, asked: {asked}")
    if unasked is None and {0, 1} <= set(asked):
        kept.append(name)
sys.exit(0 if kept == ["albert", "big_bird", "rembert", "xlnet", "funnel"] else 1)
PYTHON
