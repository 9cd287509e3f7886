"""The tutor's world: topics, the grammar of its texts, data for training, the gold reward, cheats and the audit.

Needs neither torch nor transformers. The tiny base model that speaks this grammar is the folder `BASE_MODEL`.
"""

from alignloop.demo.world.cheats import CHEATS, AuditPair, AuditText, audit, audit_text, format_audit
from alignloop.demo.world.documents import SOURCE_PROMPTS, Document, corpus, demonstrations, make_prompt, prompts
from alignloop.demo.world.grammar import HELD_OUT_TEMPLATES, REGISTERS, TEMPLATES, Register, answer, phrasings
from alignloop.demo.world.knowledge import BASE_MODEL, SPLITS, Split, Topic, topic, topic_of, topics, topics_of
from alignloop.demo.world.reward import PARTS, Gold, Kind, classify, gold, gold_scorer, readability

__all__ = [
    "BASE_MODEL",
    "CHEATS",
    "HELD_OUT_TEMPLATES",
    "PARTS",
    "REGISTERS",
    "SOURCE_PROMPTS",
    "SPLITS",
    "TEMPLATES",
    "AuditPair",
    "AuditText",
    "Document",
    "Gold",
    "Kind",
    "Register",
    "Split",
    "Topic",
    "answer",
    "audit",
    "audit_text",
    "classify",
    "corpus",
    "demonstrations",
    "format_audit",
    "gold",
    "gold_scorer",
    "make_prompt",
    "phrasings",
    "prompts",
    "readability",
    "topic",
    "topic_of",
    "topics",
    "topics_of",
]
