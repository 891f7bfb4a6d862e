#!/bin/sh
# transformers 5: from the same vocab.json and merges.txt, the tokenizer of DeBERTa (version 1) puts two [SEP] between the
# texts of a pair, where transformers 4 puts one, and gives the second text segment 0, where it was 1. A model that was
# fine-tuned with the one reads other sequences with the other, without a warning.
# A good engineer would guess that an update leaves the tokens of a published architecture alone.
#
# Seen: 4.57.1 DebertaTokenizerFast ['[CLS]', 'a', '[SEP]', 'b', '[SEP]'] [0, 0, 0, 1, 1]
#       5.23.0 DebertaTokenizer ['[CLS]', 'a', '[SEP]', '[SEP]', 'b', '[SEP]'] [0, 0, 0, 0, 0, 0]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
import tempfile
from pathlib import Path

import transformers

words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "a", "b"]
with tempfile.TemporaryDirectory() as folder:
    vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
    vocabulary.write_text(json.dumps({word: n for n, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    Path(folder, "config.json").write_text('{"model_type": "deberta"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pair = tokenizer("a", "b", return_token_type_ids=True)
print(transformers.__version__, type(tokenizer).__name__, tokenizer.convert_ids_to_tokens(pair["input_ids"]), pair["token_type_ids"])
PYTHON
for version in 4.57.1 5.23.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check "transformers==$version"
    "$folder/$version/bin/python" "$folder/show.py" 2>/dev/null | tee -a "$folder/out"
done
grep -q "^4.57.1 .*'\[CLS\]', 'a', '\[SEP\]', 'b', '\[SEP\]'\] \[0, 0, 0, 1, 1\]$" "$folder/out"
grep -q "^5.23.0 .*'\[CLS\]', 'a', '\[SEP\]', '\[SEP\]', 'b', '\[SEP\]'\] \[0, 0, 0, 0, 0, 0\]$" "$folder/out"
