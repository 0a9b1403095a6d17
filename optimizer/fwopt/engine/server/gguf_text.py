"""The tokenizer and chat template that a GGUF file carries."""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from fwopt.engine.server.text import ChatTemplate, FileTokenizer
from fwopt.errors import UnknownNameError

_CONTROL = 3
"""`tokenizer.ggml.token_type` of tokens that are no text."""
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "default": [],
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN2), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated")],
}
"""How text is cut before merging, by `tokenizer.ggml.pre`."""


def load_gguf_text(file: Path) -> tuple[FileTokenizer, ChatTemplate | None]:
    fields = gguf.GGUFReader(str(file)).fields

    def get(key: str) -> object:
        return fields[key].contents() if key in fields else None

    model, cut = str(get("tokenizer.ggml.model")), str(get("tokenizer.ggml.pre") or "default")
    if model != "gpt2":
        raise UnknownNameError("GGUF tokenizer", model, ["gpt2"], hint="give --tokenizer FOLDER with a tokenizer.json")
    if cut not in _SPLITS:
        raise UnknownNameError("GGUF pre-tokenizer", cut, _SPLITS, hint="give --tokenizer FOLDER with a tokenizer.json")
    tokens = list(fields["tokenizer.ggml.tokens"].contents())
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"].contents()]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    regex = cut in ("default", "gpt-2", "smollm")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*_SPLITS[cut], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    template = get("tokenizer.chat_template")
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        index = get(f"tokenizer.ggml.{name}_token_id")
        key = {"unknown": "unk", "padding": "pad"}.get(name, name)
        special[f"{key}_token"] = tokens[index] if isinstance(index, int) else ""
    bos = get("tokenizer.ggml.bos_token_id") if get("tokenizer.ggml.add_bos_token") else None
    return FileTokenizer(tokenizer, bos if isinstance(bos, int) else None), (
        ChatTemplate(template, special) if isinstance(template, str) else None
    )
