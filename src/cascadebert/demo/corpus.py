"""Labelled text for the demo: sentences of BBC news articles, by topic."""

from __future__ import annotations

import random
import re
from pathlib import Path

from cascadebert.data import Rows
from cascadebert.demo.assets import NEWS_PACKAGE, installed_file

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_FEWEST_WORDS = 6


def news_sentences(seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test rows: the topic of a sentence out of its article.

    All sentences of an article are on one side, so that no test row has a sibling among the
    training rows. 60, 20 and 20 % of the articles; at most eight sentences of each.
    """
    topics = installed_file(NEWS_PACKAGE, "bbcnews/data/business/001.txt").parent.parent
    articles = sorted(topics.glob("*/*.txt"))
    random.Random(seed).shuffle(articles)
    first, second = int(0.6 * len(articles)), int(0.8 * len(articles))
    parts = (articles[:first], articles[first:second], articles[second:])
    train, validation, test = (_rows(part) for part in parts)
    return train, validation, test


def _rows(articles: list[Path]) -> Rows:
    texts, labels = [], []
    for article in articles:
        # The file's first line is the headline.
        body = article.read_text(encoding="latin-1").split("\n", 1)[-1]
        sentences = [" ".join(s.split()) for s in _SENTENCE_END.split(body)]
        long_enough = [s for s in sentences if len(s.split()) >= _FEWEST_WORDS]
        texts += long_enough[:8]
        labels += [article.parent.name] * len(long_enough[:8])
    return Rows(texts, None, labels)
