"""The response boundary and the loss mask, over tokenizers of every habit."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.data.data_tokenizers import (
    LLAMA2,
    PHI3,
    REWRITES,
    SHARED,
    base,
    byte_level,
    chatml,
    llama3,
    sentencepiece,
    tagged,
)

from alignloop.core.errors import DataError, ModelError
from alignloop.core.types import Completion, Demonstration, Message, Preference, Prompt, text
from alignloop.data import ChatFormat, Encoded


def turn(role: str, content: str) -> Message:
    return Message(role, content)


USER, REPLY = turn("user", "Hello there!"), turn("assistant", "Hi, how can I help?")


def tokens(chat: ChatFormat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


def trained(chat: ChatFormat, ids: list[int], mask: list[bool]) -> str:
    return tokens(chat, [i for i, m in zip(ids, mask) if m])


# One question, one answer


def test_chatml_answer_ends_with_its_end_token_and_nothing_after() -> None:
    chat = ChatFormat(chatml())
    prompt = chat.prompt_ids([USER])
    assert tokens(chat, prompt) == "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\n"
    ids, mask = chat.completion_ids([USER], [REPLY])
    assert tokens(chat, ids) == "Hi, how can I help?<|im_end|>"  # the template's line break is not emitted
    assert all(mask) and ids[-1] == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_llama3_has_one_bos_and_ends_with_eot_though_eos_is_another_token() -> None:
    chat = ChatFormat(llama3(), generation_eos=[1, 4])
    prompt = chat.prompt_ids([USER])
    bos, eos, eot = (chat.tokenizer.convert_tokens_to_ids(t) for t in ("<|begin|>", "<|end|>", "<|eot_id|>"))
    assert prompt[0] == bos and prompt.count(bos) == 1
    ids, mask = chat.completion_ids([USER], [REPLY])
    assert ids[-1] == eot and mask[-1] and eos not in ids
    assert chat.stop_ids == (eot, eos) and chat.end_ids == (eot, eos)


def test_template_that_only_surrounds_with_spaces() -> None:
    chat = ChatFormat(sentencepiece(LLAMA2))
    ids, mask = chat.completion_ids([USER], [REPLY])
    assert tokens(chat, chat.prompt_ids([USER]) + ids) == tokens(
        chat, chat.tokenizer.encode("<s>[INST] Hello there! [/INST] Hi, how can I help? </s>", add_special_tokens=False)
    )
    assert ids[-1] == 2 and all(mask)
    assert chat.decode(ids).strip() == "Hi, how can I help?"
    assert not chat.decode(ids).startswith(" ")  # the space is the template's


def test_plain_template_of_a_base_model_trains_eos_although_it_is_pad() -> None:
    chat = ChatFormat(base())
    eos = chat.tokenizer.eos_token_id
    assert chat.tokenizer.pad_token_id == eos
    assert tokens(chat, chat.prompt_ids([USER])) == "User:\nHello there!\n\nAssistant:\n"
    ids, mask = chat.completion_ids([USER], [REPLY])
    assert tokens(chat, ids) == "Hi, how can I help?<|endoftext|>"
    assert ids[-1] == eos and mask == [True] * len(ids)
    assert chat.stop_ids == (eos,) and chat.pad_id != eos


def test_plain_template_keeps_the_bos_that_the_tokenizer_adds() -> None:
    chat = ChatFormat(byte_level(["<b>", "<e>"], adds_bos=True, bos_token="<b>", eos_token="<e>"))
    prompt = chat.prompt_ids([USER])
    assert prompt[0] == 0 and prompt.count(0) == 1
    assert chat.prompt_ids(text("<b>Hello"))[:2].count(0) == 1  # a BOS spelt out in the data is not doubled


# Several turns


def test_every_assistant_turn_is_trained_and_user_turns_are_not() -> None:
    chat = ChatFormat(chatml())
    answer = [REPLY, turn("user", "What is the sky?"), turn("assistant", "The sky is blue.")]
    ids, mask = chat.completion_ids([turn("system", "Be kind."), USER], answer)
    assert trained(chat, ids, mask) == "Hi, how can I help?<|im_end|>The sky is blue.<|im_end|>"
    left_out = tokens(chat, [i for i, m in zip(ids, mask) if not m])
    assert left_out == "\n<|im_start|>user\nWhat is the sky?<|im_end|>\n<|im_start|>assistant\n"


def test_tool_observations_are_context() -> None:
    chat = ChatFormat(base())
    answer = [turn("assistant", "calc 6*7"), turn("tool", "42"), turn("assistant", "It is 42.")]
    ids, mask = chat.completion_ids([USER], answer)
    assert tokens(chat, ids) == "calc 6*7<|endoftext|>\n\nTool:\n42\n\nAssistant:\nIt is 42.<|endoftext|>"
    assert trained(chat, ids, mask) == "calc 6*7<|endoftext|>It is 42.<|endoftext|>"


@pytest.mark.parametrize("make", [chatml, llama3, base, tagged, lambda: chatml(PHI3)])
def test_answers_continue_the_prompt_as_a_longer_prompt_would_read(make) -> None:
    """prompt ++ answers is how a prompt that holds these turns begins (where no merge is prevented)."""
    chat = ChatFormat(make())
    answer = [REPLY, turn("user", "The sky?"), turn("assistant", "Blue, and grass is green.")]
    whole = chat.prompt_ids([USER]) + chat.completion_ids([USER], answer)[0]
    longer = chat.prompt_ids([USER, *answer, turn("user", "more")])
    assert longer[: len(whole)] == whole


def test_template_that_writes_eos_after_the_last_turn_only() -> None:
    chat = ChatFormat(chatml(PHI3))
    answer = [REPLY, turn("user", "What is the sky?"), turn("assistant", "The sky is blue.")]
    ids, mask = chat.completion_ids([USER], answer)
    assert trained(chat, ids, mask) == "Hi, how can I help?<|im_end|>The sky is blue.<|im_end|>"


def test_consecutive_assistant_turns_are_both_answers() -> None:
    chat = ChatFormat(chatml())
    ids, mask = chat.completion_ids([USER], [REPLY, turn("assistant", "Hello?")])
    assert trained(chat, ids, mask) == "Hi, how can I help?<|im_end|>Hello?<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name_and_turn() -> None:
    chat = ChatFormat(chatml(), template=REWRITES)
    chat.completion_ids([USER], [REPLY])  # a single answer is fine
    answer = [REPLY, turn("user", "What is the sky?"), turn("assistant", "Blue.")]
    with pytest.raises(DataError, match=r"the given chat template changes what it wrote before.*turn 3 \(user\)"):
        chat.completion_ids([USER], answer)


def test_a_template_that_refuses_a_role_says_so() -> None:
    chat = ChatFormat(sentencepiece(LLAMA2))
    with pytest.raises(DataError, match=r"refuses turn 1 \(system\): Only user and assistant"):
        chat.prompt_ids([turn("system", "Be kind.")])


def test_cut_off_answers_have_no_end_token() -> None:
    for make in (chatml, base, llama3):
        chat = ChatFormat(make())
        full, _ = chat.completion_ids([USER], [REPLY])
        cut, mask = chat.completion_ids([USER], [REPLY], ended=False)
        assert full[:-1] == cut and all(mask)


def test_an_end_token_inside_an_answer_is_refused() -> None:
    chat = ChatFormat(chatml())
    with pytest.raises(DataError, match=r"holds the end token '<\|im_end\|>'"):
        chat.completion_ids([USER], [turn("assistant", "Hi<|im_end|>\n<|im_start|>user\nmore")])
    with pytest.raises(DataError, match="end token"):
        ChatFormat(base()).completion_ids(text("a"), text("b<|endoftext|>c"))


def test_kinds_of_data_do_not_mix() -> None:
    chat = ChatFormat(chatml())
    with pytest.raises(DataError, match="role assistant"):
        chat.completion_ids([USER], text("Hi"))
    with pytest.raises(DataError, match="role user"):
        chat.completion_ids(text("Hi"), [REPLY])
    with pytest.raises(DataError, match="last turn must be the assistant's"):
        chat.completion_ids([USER], [REPLY, USER])
    assert chat.answer([USER], "Hi") == (turn("assistant", "Hi"),)
    assert chat.answer(text("Once"), " upon") == text(" upon")


# Plain text


def test_plain_text_sees_no_template_and_ends_with_eos() -> None:
    chat = ChatFormat(chatml())
    assert tokens(chat, chat.prompt_ids(text("Once upon"))) == "Once upon"
    ids, mask = chat.completion_ids(text("Once upon"), text(" a time"))
    assert tokens(chat, ids) == " a time<|im_end|>" and all(mask)
    assert ChatFormat(chatml(), append_eos=False).completion_ids(text("Once upon"), text(" a time"))[0] == ids[:-1]


@pytest.mark.parametrize(
    "prompt, answer", [("Once up", "on a time"), ("The sky", " is blue."), ("a", ", b"), ("\n", "\n")]
)
@pytest.mark.parametrize("make", [base, chatml, sentencepiece, lambda: sentencepiece(metaspace="always")])
def test_nothing_merges_or_is_invented_at_the_boundary(make, prompt: str, answer: str) -> None:
    """The answer's ids are the same whatever the prompt ends with, and decode to exactly its text."""
    chat = ChatFormat(make())
    before = chat.prompt_ids(text(prompt))
    ids, _ = chat.completion_ids(text(prompt), text(answer))
    assert ids == chat.completion_ids(text("What is the sky?"), text(answer))[0]
    assert chat.decode(ids) == answer
    assert chat.pieces.decode(before[len(chat.pieces.prefix) :]).removeprefix(" ") + chat.decode(ids) == prompt + answer


def test_language_modelling_starts_after_bos_as_a_text_of_its_own() -> None:
    chat = ChatFormat(sentencepiece())
    ids, mask = chat.completion_ids((), text("Once upon a time"))
    assert chat.prompt_ids(()) == [1] and all(mask)
    assert [1, *ids] == [*chat.tokenizer("Once upon a time")["input_ids"], 2]
    gpt = ChatFormat(base())
    assert gpt.prompt_ids(()) == [gpt.tokenizer.bos_token_id]


def test_without_bos_and_eos_the_first_token_is_not_a_target() -> None:
    chat = ChatFormat(byte_level(["<pad>"], pad_token="<pad>"), append_eos=False)
    ids, mask = chat.completion_ids((), text("Once upon"))
    assert chat.prompt_ids(()) == [] and mask == [False] + [True] * (len(ids) - 1)


# End tokens, padding, fingerprint


def test_stop_token_override_ends_plain_text() -> None:
    chat = ChatFormat(sentencepiece(), stop_token_override="<s>")
    ids, _ = chat.completion_ids(text("Once"), text(" upon"))
    assert ids[-1] == 1 and chat.end_ids == (1,) and chat.stop_ids == (1, 2)
    assert chat.decode(ids) == " upon"
    with pytest.raises(ModelError, match="'<stop>' is no token"):
        ChatFormat(sentencepiece(), stop_token_override="<stop>")


def test_end_tokens_that_are_no_special_tokens_are_not_decoded() -> None:
    tokenizer = base()
    fox = tokenizer.encode(" fox", add_special_tokens=False)[-1]
    chat = ChatFormat(tokenizer, generation_eos=fox)
    words, _ = chat.completion_ids(text("a"), text(" little"), ended=False)
    assert chat.stop_ids == (0, fox) and chat.decode([*words, fox]) == " little"


def test_the_space_that_follows_a_special_token_is_not_part_of_the_answer() -> None:
    chat = ChatFormat(tagged())
    ids, _ = chat.completion_ids([USER], [REPLY])
    assert tokens(chat, ids[:1]).startswith(" ") or chat.pieces.decode(ids[:1]).startswith(" ")
    assert chat.decode(ids) == "Hi, how can I help?"


def test_past_an_added_token_a_piece_begins_afresh_as_in_a_whole_text() -> None:
    pieces = ChatFormat(tagged()).pieces
    end = pieces.id_of("<|end|>")
    whole = pieces.begin("Once fox<|end|>Hello")
    piece = pieces.follow(" fox<|end|>Hello", pieces.begin("Once")[-1])
    assert piece[piece.index(end) :] == whole[whole.index(end) :]


def test_a_tokenizer_without_eos_needs_a_word_from_the_user() -> None:
    bare = byte_level(["<pad>"], pad_token="<pad>")
    with pytest.raises(ModelError, match="no end-of-sequence token; set one, name one as stop_token_override"):
        ChatFormat(bare)
    assert ChatFormat(bare, append_eos=False).stop_ids == ()


def test_pad_is_never_an_end_token() -> None:
    assert ChatFormat(chatml()).pad_id == 0  # its own pad
    assert ChatFormat(sentencepiece()).pad_id == 0  # no pad: unk
    chat = ChatFormat(base())  # pad, unk and eos are token 0: the lowest other id
    assert chat.stop_ids == (0,) and chat.pad_id == 1


def test_fingerprint_survives_padding_state_saving_and_a_new_pad_token(tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer = base()
    first = ChatFormat(tokenizer).fingerprint
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=1)  # leaves traces in the backend
    assert ChatFormat(tokenizer).fingerprint == first
    tokenizer.save_pretrained(tmp_path / "same")
    assert ChatFormat(AutoTokenizer.from_pretrained(tmp_path / "same")).fingerprint == first
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(tmp_path / "padded")
    assert ChatFormat(AutoTokenizer.from_pretrained(tmp_path / "padded")).fingerprint == first
    assert ChatFormat(chatml()).fingerprint != first
    assert ChatFormat(chatml(), template=PHI3).fingerprint != ChatFormat(chatml()).fingerprint


def test_truncation_state_of_the_tokenizer_does_not_cut_rows() -> None:
    tokenizer = base()
    tokenizer(["a b c"], truncation=True, max_length=1)
    assert len(ChatFormat(tokenizer).prompt_ids(text("Once upon a time there was a little fox"))) > 1


# Records and cutting


def record(prompt: tuple[Message, ...], *answers: tuple[Message, ...]) -> Demonstration | Preference:
    ask = Prompt("p", prompt)
    made = [Completion(f"c{i}", "p", a) for i, a in enumerate(answers)]
    return Demonstration("d", ask, made[0]) if len(made) == 1 else Preference("d", ask, made[0], made[1])


def test_encode_gives_prompt_and_answer() -> None:
    chat = ChatFormat(chatml())
    encoded = chat.encode(record((USER,), (REPLY,)))
    assert encoded.prompt == chat.prompt_ids([USER]) and encoded.id == "d" and not encoded.truncated
    chosen, rejected = chat.encode_pair(record((USER,), (REPLY,), (turn("assistant", "No."),)))
    assert chosen.prompt == rejected.prompt == encoded.prompt and chosen.response != rejected.response


def made(prompt: int, response: int, untrained: int = 0) -> Encoded:
    return Encoded(
        list(range(10, 10 + prompt)), list(range(50, 50 + response)), [i >= untrained for i in range(response)]
    )


def test_fit_takes_the_prompt_from_its_left_then_the_answer_from_its_right() -> None:
    chat = ChatFormat(chatml())
    assert chat.fit(made(4, 3), 7) == made(4, 3)
    cut = chat.fit(made(4, 3), 5)
    assert cut.prompt == [12, 13] and cut.response == [50, 51, 52] and (cut.truncated, cut.prompt_cut) == (False, 2)
    cut = chat.fit(made(4, 3), 3)
    assert cut.prompt == [13] and cut.response == [50, 51] and (cut.truncated, cut.prompt_cut) == (True, 3)
    assert chat.fit(made(4, 3), 100, max_prompt_length=2).prompt == [12, 13]


def test_fit_keeps_bos() -> None:
    chat = ChatFormat(llama3())
    row = Encoded([chat.tokenizer.bos_token_id, 11, 12, 13], [50, 51], [True, True])
    assert chat.fit(row, 4).prompt == [0, 13]
    assert chat.fit(row, 3).prompt == [0, 13] and chat.fit(row, 3).response == [50]


def test_fit_refuses_to_leave_nothing_to_learn() -> None:
    chat = ChatFormat(chatml())
    with pytest.raises(DataError, match="nothing of the answer is left within max_length 1"):
        chat.fit(made(4, 3), 1)
    with pytest.raises(DataError, match="max_length 3"):
        chat.fit(made(4, 3, untrained=2), 3)


def test_both_sides_of_a_pair_keep_the_same_prompt() -> None:
    chat = ChatFormat(chatml())
    short, long = chat.fit_together([made(6, 1), made(6, 5)], 8)
    assert short.prompt == long.prompt == [13, 14, 15] and len(long.response) == 5


# Real templates and tokenizers

_TRL = importlib.util.find_spec("trl")
TEMPLATES = Path(_TRL.origin).parent / "chat_templates" if _TRL and _TRL.origin else Path("absent")


def with_template(name: str) -> ChatFormat:
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"trl does not ship {path.name}")
    template = path.read_text(encoding="utf-8")
    marks = sorted(set(re.findall(r"<\|[^<>{}'\"\n]{1,40}\|>|<(?:start|end)_of_turn>", template)))
    return ChatFormat(byte_level(["<s>", "</s>", *marks], bos_token="<s>", eos_token="</s>", template=template))


@pytest.mark.parametrize(
    "name, end",
    [
        ("llama3", "<|eot_id|>"), ("llama3_2", "<|eot_id|>"), ("qwen2_5", "<|im_end|>"), ("phi3", "<|end|>"),
        ("qwen3_instruct_2507", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("gemma3", "<end_of_turn>"),
        ("lfm2", "<|im_end|>"), ("cohere", "<|END_OF_TURN_TOKEN|>"), ("glm4moe", "</s>"),
    ],
)  # fmt: skip
def test_templates_of_real_models(name: str, end: str) -> None:
    chat = with_template(name)
    ids, mask = chat.completion_ids([USER], [REPLY, turn("user", "The sky?"), turn("assistant", "Blue.")])
    assert trained(chat, ids, mask).replace("\n<think></think>\n", "") == f"Hi, how can I help?{end}Blue.{end}"
    assert chat.decode(chat.completion_ids([USER], [REPLY])[0]) == "Hi, how can I help?"
    assert chat.prompt_ids([USER]).count(chat.tokenizer.bos_token_id) <= 1


def test_thinking_template_takes_one_answer_and_refuses_two() -> None:
    chat = with_template("qwen3")
    ids, mask = chat.completion_ids([USER], [REPLY])
    assert trained(chat, ids, mask) == "<think>\n\n</think>\n\nHi, how can I help?<|im_end|>"  # it emits the block
    assert chat.decode(ids) == "Hi, how can I help?"
    with pytest.raises(DataError, match="changes what it wrote before"):
        chat.completion_ids([USER], [REPLY, turn("user", "The sky?"), turn("assistant", "Blue.")])


@pytest.mark.skipif(not (SHARED / "tokenizers" / "gpt2").is_dir(), reason="no shared data")
def test_real_gpt2() -> None:
    from transformers import AutoTokenizer

    chat = ChatFormat(AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "gpt2"))
    assert chat.stop_ids == (50256,) and chat.pad_id == 0
    # "Once up" + "on": jointly 7454, 2402; apart "up" and "on" stay two tokens.
    assert chat.prompt_ids(text("Once up")) == [7454, 510]
    assert chat.completion_ids(text("Once up"), text("on a time")) == ([261, 257, 640, 50256], [True] * 4)
    assert chat.decode([261, 257, 640, 50256]) == "on a time"
    whole = tokens(chat, chat.prompt_ids([USER]) + chat.completion_ids([USER], [REPLY])[0])
    assert whole == "User:\nHello there!\n\nAssistant:\nHi, how can I help?<|endoftext|>"


@pytest.mark.skipif(not (SHARED / "models" / "stories260K").is_dir(), reason="no shared data")
def test_real_stories260k_ends_stories_with_bos_and_invents_no_space() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "stories260K" / "hf")
    chat = ChatFormat(tokenizer, append_eos=False, generation_eos=[1, 2])
    assert chat.stop_ids == (2, 1) and chat.end_ids == () and chat.pad_id == 0
    assert chat.prompt_ids(text("Once upon a time")) == [1, 403, 407, 261, 378]
    joint = tokenizer("Once upon a time, there was")["input_ids"]
    ids, mask = chat.completion_ids(text("Once upon a time"), text(", there was"))
    assert chat.prompt_ids(text("Once upon a time")) + ids == joint and all(mask)
    assert chat.decode(ids) == ", there was"
    assert chat.decode(chat.completion_ids(text("Once"), text(" upon"))[0]) == " upon"
    assert chat.decode([*ids, 1]) == ", there was"


def test_chat_and_readers_leave_torch_alone() -> None:
    code = "import sys, alignloop.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
