"""Why filters leave rows out: reasons as datatrove names them, in a person's words."""

import re
from collections.abc import Mapping

_MEANINGS = {
    "empty": "nothing is said",
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short on average",
    "gopher_above_avg_threshold": "words too long on average",
    "gopher_too_many_hashes": "many # for its words",
    "gopher_too_many_ellipsis": "many ellipses for its words",
    "gopher_too_many_bullets": "nearly every line begins with a bullet",
    "gopher_too_many_end_ellipsis": "many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "many words without a letter",
    "gopher_enough_stop_words": "hardly a word such as 'the' or 'of'",
    "dup_para_frac": "repeated paragraphs",
    "dup_para_char_frac": "repeated paragraphs, by their letters",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "repeated lines, by their letters",
    "line_punct_ratio": "few lines end as sentences do",
    "short_line_ratio": "mostly short lines",
    "char_dup_ratio": "letters in repeated lines",
    "list_ratio": "a line end every few words, as in lists",
    "lorem_ipsum": "the filler 'lorem ipsum'",
    "curly_bracket": "a curly bracket, as in code",
    "too_few_sentences": "too few whole sentences",
}
_OF_RUNS = {
    r"top_(\d+)_gram": "one run of {} words makes up much of it",
    r"duplicated_(\d+)_n_grams": "repeated runs of {} words",
}


def meaning(reason: str) -> str:
    """Return a reason in words, with the library's name for it; that alone where it is unknown."""
    for pattern, words in _OF_RUNS.items():
        if found := re.fullmatch(pattern, reason):
            return f"{words.format(found[1])} ({reason})"
    return f"{_MEANINGS[reason]} ({reason})" if reason in _MEANINGS else reason


def by_reason(counts: Mapping[str, int]) -> str:
    """Return how many rows were left out for each reason, most first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{n:,} for {meaning(reason)}" for reason, n in ordered)
