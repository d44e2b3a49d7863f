"""How a tokenizer spells the words of concepts: what tells from tokens which concepts a caption names.

Shapes: B captions, L positions, F words in all their forms, N concepts, V words of the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.tokenizer import CaptionTokenizer

LONGEST = 6  # tokens of a word; longer ones, which are rare, are not recognised
NO_PIECE = -1


@dataclass(frozen=True)
class ConceptSpelling:
    """The tokens of the forms of concepts' words.

    Attributes:
        pieces: (F, LONGEST) token ids, `NO_PIECE` behind a shorter word.
        concept: (F,) which concept each stands for.
        continues: (V + 2,) True for tokens that go on with a word; not for MASK, V, nor for what follows.
        concepts: N.
    """

    pieces: Tensor
    concept: Tensor
    continues: Tensor
    concepts: int

    @classmethod
    def of(cls, vocabulary: ConceptVocabulary, tokenizer: CaptionTokenizer) -> ConceptSpelling:
        """Spell all words of a vocabulary, as in the middle of a caption."""
        pieces, concepts = [], []
        for form in {**dict.fromkeys(vocabulary.words), **vocabulary.forms}:
            concept, ids = vocabulary.number(form), tokenizer.encode_part(form)
            if concept is not None and len(ids) <= LONGEST:
                pieces.append(ids + [NO_PIECE] * (LONGEST - len(ids)))
                concepts.append(concept)
        texts = tokenizer.pieces(range(tokenizer.vocabulary_size))
        goes_on = [text[:1].isalnum() or text[:1] == "-" for text in texts]
        continues = torch.tensor([*goes_on, False, False])
        return cls(torch.tensor(pieces).view(-1, LONGEST), torch.tensor(concepts), continues, len(vocabulary))

    def to(self, device: torch.device | str) -> ConceptSpelling:
        """The same on `device`."""
        return ConceptSpelling(
            self.pieces.to(device), self.concept.to(device), self.continues.to(device), self.concepts
        )

    @property
    def first(self) -> Tensor:
        """(F,) the token that a word begins with."""
        return self.pieces[:, 0]

    @property
    def is_one_token(self) -> Tensor:
        """(F,) whether the first token is all of the word."""
        return self.pieces[:, 1] == NO_PIECE

    def named(self, tokens: Tensor, mask_id: int) -> Tensor:
        """(B, N) True for the concepts that captions (B, L) name; of a begun word a MASK may be the rest."""
        occurring = torch.isin(self.first, tokens).nonzero().squeeze(1)
        pieces = self.pieces[occurring]  # (f, LONGEST)
        windows = F.pad(tokens, (0, LONGEST), value=mask_id + 1).unfold(1, LONGEST + 1, 1)
        found = windows[..., :1] == pieces[:, 0]  # (B, L, f)
        for place in range(1, LONGEST):
            token, piece = windows[..., place : place + 1], pieces[:, place]
            found &= (token == piece) | (token == mask_id) | (piece == NO_PIECE)
        sizes = (pieces != NO_PIECE).sum(dim=1)  # (f,)
        found &= ~self.continues[windows][..., sizes]  # "cat" is not named by "catch"
        named = torch.zeros(len(tokens), self.concepts, dtype=torch.long, device=tokens.device)
        which = self.concept[occurring].expand(len(tokens), -1)
        return named.scatter_add_(1, which, found.any(dim=1).long()) > 0
