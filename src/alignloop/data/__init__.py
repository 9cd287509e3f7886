"""Files into records, records into splits, messages into token ids. Free of torch.

Batches of token ids are made in `alignloop.data.collate`, `packing` and `loader`, which import torch and are therefore
not imported here.
"""

from alignloop.data.chat import PLAIN_TEMPLATE, ChatFormat, Encoded
from alignloop.data.convert import (
    chosen_as_demonstrations,
    grades_to_margins,
    one_answer_per_row,
    pairs_to_labels,
    ranking_to_pairs,
    rankings_to_pairs,
)
from alignloop.data.readers import (
    Loaded,
    Skipped,
    load_demonstrations,
    load_labels,
    load_preferences,
    load_prompts,
    load_rankings,
)
from alignloop.data.sources import Row, read_rows
from alignloop.data.splits import assert_disjoint, folds, near_duplicates, split_by_prompt, split_key

__all__ = [
    "PLAIN_TEMPLATE",
    "ChatFormat",
    "Encoded",
    "Loaded",
    "Row",
    "Skipped",
    "assert_disjoint",
    "chosen_as_demonstrations",
    "folds",
    "grades_to_margins",
    "load_demonstrations",
    "load_labels",
    "load_preferences",
    "load_prompts",
    "load_rankings",
    "near_duplicates",
    "one_answer_per_row",
    "pairs_to_labels",
    "ranking_to_pairs",
    "rankings_to_pairs",
    "read_rows",
    "split_by_prompt",
    "split_key",
]
