"""The tokenizer files of gpt-oss, rebuilt offline and byte-identical to the published ones.

A checkpoint usually has its own tokenizer.json. Tests, synthetic checkpoints and machines without a network do not
have one. For them the same files are made from the byte-pair ranks of `o200k_base` in the PyPI package `bpe-openai`.

Input and output are both verified. The ranks must have the SHA-256 that OpenAI publishes in tiktoken. The results must
have the SHA-256 of the files in openai/gpt-oss-20b on Hugging Face.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from pathlib import Path

from ossia.errors import OssiaError, UserError
from ossia.files import atomic_file, cache_folder

RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

# Name -> (bytes, SHA-256), as in openai/gpt-oss-20b, revision 6cee5e81.
PUBLISHED_FILES = {
    "tokenizer.json": (27_868_174, "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"),
    "tokenizer_config.json": (4_200, "9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070"),
    "special_tokens_map.json": (98, "dd5e191d20c12d2fee1da5bae14ca1db0f5f4215300af691f23cdee97120a293"),
    "generation_config.json": (177, "f9970ada892d2d1f72e3ed0a6535ccebadd11897318794ca671d8c7014c957da"),
}

_NAMED_SPECIAL_TOKENS = {
    199998: "startoftext",
    199999: "endoftext",
    200002: "return",
    200003: "constrain",
    200005: "channel",
    200006: "start",
    200007: "end",
    200008: "message",
    200012: "call",
    200018: "endofprompt",
}
SPECIAL_TOKENS = {id: f"<|{_NAMED_SPECIAL_TOKENS.get(id, f'reserved_{id}')}|>" for id in range(199998, 200019)}
"""The 21 special tokens that tokenizer.json lists, id -> text."""

# The pattern with which o200k_base cuts text into words before the merges (tiktoken, openai_public.py).
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
WORD_PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def offline_tokenizer_folder() -> Path:
    """Return a folder with the four published tokenizer files.

    The first call builds it in the user's cache folder, which takes a few seconds. Two processes may build it at the
    same time. Each writes its own files and moves them into place, and the files are equal.

    Raises:
        UserError: `bpe-openai` is not installed, its ranks are not those of o200k_base, or the cache folder cannot be
            written.
        OssiaError: a rebuilt file differs from the published one.
    """
    folder = cache_folder() / f"tokenizer-{PUBLISHED_FILES['tokenizer.json'][1][:12]}"
    missing = [name for name, (size, _) in PUBLISHED_FILES.items() if not _is_there(folder / name, size)]
    if not missing:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _build(folder, missing)
    except OSError as error:
        raise UserError(
            f"the tokenizer cannot be built in the cache folder ({error.strerror})",
            where=str(folder),
            why="it takes 28 MB, once",
            do="set OSSIA_CACHE to a folder with space that you may write to, or give --model CHECKPOINT",
        ) from error
    return folder


def _build(folder: Path, missing: list[str]) -> None:
    for name in missing:
        with atomic_file(folder / name) as temporary:
            _write_file(name, temporary)
            expected = PUBLISHED_FILES[name][1]
            built = hashlib.sha256(temporary.read_bytes()).hexdigest()
            if built != expected:
                raise OssiaError(
                    f"The rebuilt {name} differs from the published one (SHA-256 {built[:12]}, not {expected[:12]})",
                    why="another version of the `tokenizers` package may write the file differently",
                    do="give Ossia a checkpoint folder that has a tokenizer.json",
                )


def read_ranks() -> dict[bytes, int]:
    """Return the 199,998 byte-pair ranks of o200k_base from the package `bpe-openai`, as token bytes -> id.

    The package is located but not imported, because its extension module has 74 MB.

    Raises:
        UserError: the package is missing, or the ranks are not the published ones.
    """
    package = importlib.util.find_spec("bpe_openai")
    remedy = "pip install bpe-openai, or point to a checkpoint folder that has a tokenizer.json"
    if package is None or not package.submodule_search_locations:
        raise UserError("There is no tokenizer: the package bpe-openai is not installed", do=remedy)
    path = Path(package.submodule_search_locations[0]) / "data" / "o200k_base.tiktoken.gz"
    if not path.is_file():
        raise UserError("The package bpe-openai has no o200k_base ranks", where=str(path), do=remedy)
    published = gzip.decompress(path.read_bytes())
    if hashlib.sha256(published).hexdigest() != RANKS_SHA256:
        raise UserError("The ranks are not those of o200k_base (SHA-256 differs)", where=str(path), do=remedy)
    pairs = (line.split() for line in published.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def byte_alphabet() -> dict[int, str]:
    """Return byte -> the printable character that represents it in byte-level BPE files (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write_file(name: str, path: Path) -> None:
    if name == "tokenizer.json":
        _write_tokenizer(read_ranks(), path)
        return
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    roles = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
    config = {
        "added_tokens_decoder": {str(id): {"content": text, **flags} for id, text in SPECIAL_TOKENS.items()},
        "bos_token": roles["bos_token"],
        "clean_up_tokenization_spaces": False,
        "eos_token": roles["eos_token"],
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": roles["pad_token"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
        "transformers_version": "4.55.0.dev0",
    }
    contents = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": roles,
        "generation_config.json": generation,
    }
    path.write_bytes((json.dumps(contents[name], indent=2) + "\n").encode())


def _write_tokenizer(ranks: dict[bytes, int], path: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = byte_alphabet()
    text = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    # The ranks do not contain the pair that a token was merged from. So every split into two known tokens is listed,
    # best first.
    splits = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], text[token[:cut]], text[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    splits.sort()
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    merges = [(left, right) for *_, left, right in splits]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True, fuse_unk=False))
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()])
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # `save` reports a full disk as a bare Exception
