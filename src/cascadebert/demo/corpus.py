"""Labelled text for the demo: sentences of BBC news articles, by topic."""

from __future__ import annotations

import random
import re
from pathlib import Path

from cascadebert.demo.assets import NEWS_PACKAGE, installed_file
from cascadebert.rows.rows import Rows

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_FEWEST_WORDS = 6
_MOST_SENTENCES = 8


def news_sentences(seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test rows: the topic of a sentence out of its article.

    The sentences of an article are all on one side: 60, 20 and 20 % of the articles. Articles
    that were printed twice are taken once, so that no test row has a sibling in training.
    """
    topics = installed_file(NEWS_PACKAGE, "bbcnews/data/business/001.txt").parent.parent
    paths = sorted(topics.glob("*/*.txt"))
    random.Random(seed).shuffle(paths)
    seen: set[str] = set()
    articles: list[tuple[str, list[str]]] = []
    for path in paths:
        sentences = _sentences(path)
        if seen.isdisjoint(sentences):
            articles.append((path.parent.name, sentences))
        seen.update(sentences)
    first, second = int(0.6 * len(articles)), int(0.8 * len(articles))
    return _rows(articles[:first]), _rows(articles[first:second]), _rows(articles[second:])


def _sentences(article: Path) -> list[str]:
    # The file's first line is the headline.
    body = article.read_text(encoding="latin-1").split("\n", 1)[-1]
    sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(body))
    return [sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS]


def _rows(articles: list[tuple[str, list[str]]]) -> Rows:
    rows = [(text, topic) for topic, texts in articles for text in texts[:_MOST_SENTENCES]]
    return Rows([text for text, _ in rows], None, [topic for _, topic in rows])
