"""Files into records, records into splits, messages into token ids. Free of torch.

Batches of token ids are made in `alignloop.data.collate`, `packing` and `loader`, which import torch and are therefore
not imported here.
"""

from alignloop.data.chat import PLAIN_TEMPLATE, ChatFormat, Encoded
from alignloop.data.convert import (
    CONVERSIONS,
    chosen_as_demonstrations,
    grades_to_margins,
    labels_to_pairs,
    one_answer_per_row,
    pairs_to_labels,
    ranking_to_pairs,
    rankings_to_pairs,
)
from alignloop.data.overlap import held_out, overlaps
from alignloop.data.readers import (
    Loaded,
    Skipped,
    load_demonstrations,
    load_labels,
    load_preferences,
    load_prompts,
    load_rankings,
    load_steps,
)
from alignloop.data.sources import Row, read_rows
from alignloop.data.splits import assert_disjoint, folds, split_by_prompt, split_key

__all__ = [
    "CONVERSIONS",
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
    "held_out",
    "labels_to_pairs",
    "load_demonstrations",
    "load_labels",
    "load_preferences",
    "load_prompts",
    "load_rankings",
    "load_steps",
    "one_answer_per_row",
    "overlaps",
    "pairs_to_labels",
    "ranking_to_pairs",
    "rankings_to_pairs",
    "read_rows",
    "split_by_prompt",
    "split_key",
]
