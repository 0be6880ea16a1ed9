"""A tokenizer trained on the texts at hand, for models that start from nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
# bytes of a piece that merges are learned from: their time grows with its square, and a text may hold no space
LONGEST_PIECE = 1000


def train_tokenizer(texts: Iterable[str], *, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts always give the same one.

    Its ids 0 and 1 are ``<pad>`` and ``<eos>``, the 256 after them the single bytes, so any text survives
    encoding and decoding. No special token is put around a text.

    Args:
        texts: what to learn from.
        vocab_size: ids in all, learned by merges (fewer if the texts give no more). Merges never reach over
            `LONGEST_PIECE` bytes without a break. None needs no merges: every
            word of the texts, with and without its leading space, has one id. That is right for a small closed
            vocabulary, where merges would leave two ids in three unused.

    Raises:
        ValueError: `vocab_size` has no room for the special tokens and the bytes.

    >>> tokenizer = train_tokenizer(["The cat saw the dog."])
    >>> len(tokenizer), tokenizer.encode("The dog saw the cat.")
    (263, [258, 260, 261, 262, 259, 15])
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + 2
    if vocab_size is not None and vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (bytes and special tokens), got {vocab_size}")
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if vocab_size is None:
        counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
        words = sorted(piece for piece in counts if len(piece) > 1)
        vocabulary = {token: index for index, token in enumerate((PAD, EOS, *alphabet, *words))}
        # ignore_merges: a word found whole in the vocabulary is taken whole; any other falls to its bytes.
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
        backend.pre_tokenizer = splitter
    else:
        texts = list(texts)
        backend = Tokenizer(models.BPE())
        cut = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_PIECE}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([splitter, cut])
        # a merge joins two bytes of the texts at least once; the trainer reserves memory for all it is allowed
        most = least + sum(len(text.encode()) for text in texts)
        trainer = trainers.BpeTrainer(
            vocab_size=min(vocab_size, most),
            special_tokens=[PAD, EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
