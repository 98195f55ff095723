"""Replies that say which model or company they come from: whoever reads them is no longer blind.

Only what a reply says about itself counts ("I am ChatGPT", "as an AI trained by OpenAI"), not
what it says about others ("OpenAI was founded in 2015").
"""

import re
from collections.abc import Sequence
from functools import lru_cache

# fmt: off
NAMES = (
    "OpenAI", "Open AI", "ChatGPT", "Chat GPT", "GPT", "InstructGPT", "Anthropic", "Claude",
    "DeepMind", "LaMDA", "Mistral", "Mistral AI", "Mixtral", "Qwen", "Tongyi", "Alibaba",
    "DeepSeek", "Moonshot AI", "Kimi", "Baichuan", "ChatGLM", "GLM", "Zhipu AI", "01.AI", "Vicuna",
    "LMSYS", "Large Model Systems Organization", "Databricks", "MPT", "StableLM", "StabilityAI",
    "Stability AI", "Cohere", "xAI", "Nemotron", "NVIDIA", "OLMo", "Allen Institute for AI",
    "OpenAssistant", "Open Assistant", "LAION", "Pythia", "EleutherAI", "BigScience", "InternLM",
    "Inflection AI", "Ernie Bot", "Baidu", "Hunyuan", "Tencent", "Doubao", "ByteDance",
    "Character.AI", "Perplexity AI", "Replika", "WizardLM", "Hugging Face", "HuggingFace",
    "SmolLM", "MiniMax", "Microsoft", "Google", "Google AI", "Meta AI", "Facebook", "IBM",
    "Amazon", "davinci", "text-davinci-003", "RWKV", "Cerebras",
)
"""Names that mean nothing else in "I am ..."."""

WORDS = (
    "Alpaca", "Apple", "Bard", "Bloom", "Bing", "Copilot", "Dolly", "Falcon", "Gemini", "Gemma",
    "Granite", "Grok", "Koala", "Llama", "Meta", "Nova", "PaLM", "Phi", "Titan", "Tulu", "Zephyr",
)
"""Names that are words too: "I am a bard" says nothing, "I am Bard" does."""

GENERIC = frozenset((
    "answer", "assistant", "base", "baseline", "best", "bot", "chat", "expert", "helpful", "human",
    "labeler", "model", "new", "old", "person", "policy", "reference", "reply", "sft", "student",
    "teacher", "the", "user",
))
"""Words that a policy may be called by and that give nothing away."""
# fmt: on

_FILLER = (
    r"(?:(?:an?|the|just|only|actually|called|named|known|as|your|new|latest|version|of|based|on|"
    r"AI|A\.I\.|artificial|intelligence|large|big|small|language|model|assistant|chatbot|chat|bot|"
    r"virtual|digital|helpful|friendly|harmless|honest|conversational|open|source|open-source|"
    r"advanced|powerful|neural|network|machine|learning|program|system|computer|from|by|and|"
    r"trained|created|developed|made|built|designed|it's|name|is)[ ,:-]+){0,12}?"
)
_MADE = (
    r"(?:trained|created|developed|made|built|designed|fine-?tuned|finetuned|released|owned|"
    r"powered|programmed|maintained|operated|provided|brought to you|coming|came|come)"
    r"(?: and \w+)? (?:by|at|from|on)\s+(?:the )?"
    r"(?:(?:company|team|people|researchers|research team|folks|engineers|scientists|developers)"
    r"(?: at| from| of|,| called)? )?"
)
_SELF = (
    r"(?:I am|I'm|I was|my name is|my name's|call me|this is|"
    r"you(?: are|'re) (?:talking|chatting|speaking) (?:to|with))"
)


def leaks(text: str, names: Sequence[str] = ()) -> list[str]:
    """The names by which a reply gives itself away, as it writes them; empty when it does not.

    names: further ones, such as those of the policies.
    """
    any_name, patterns = _patterns(tuple(names))
    plain = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("*", "")
    if not any_name.search(plain):
        return []
    found = (match["name"] for pattern in patterns for match in pattern.finditer(plain))
    return list(dict.fromkeys(found))


def policy_names(policies: Sequence[str]) -> list[str]:
    """What replies could call themselves by, of policies such as "runs/a/model-x" or "a|b"."""
    parts = {part for policy in policies for part in re.split(r"[|/\\]", policy)}
    return sorted(p for p in parts if len(p) >= 3 and p.lower() not in GENERIC)


@lru_cache(maxsize=64)
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...]]:
    sure, words = _alternatives((*NAMES, *names)), _alternatives(WORDS)
    either = rf"(?P<name>{sure}|{words})"
    sentence = r"[^.!?\n]"
    sources = (
        # I am ChatGPT; my name is Claude; I'm a large language model from Google
        rf"\b{_SELF}\s+{_FILLER}(?P<name>{sure})",
        # I am Bard, but not: I am a bard
        rf"\b{_SELF}\s+(?:called |named |known as )?(?P<name>(?-i:{words}))"
        rf"(?=\s*(?:[.,!:;]|$|and\b))",
        # As ChatGPT, I cannot; as a Google AI, I
        rf"\b(?:as|being)\s+{_FILLER}(?P<name>{sure}|(?-i:{words}))"
        rf"(?=(?:'s)?(?:\s+(?:AI|language|model|assistant|chatbot))*\s*,?\s+(?:I|my)\b)",
        # I was trained by OpenAI; an AI model made by the team at Google
        rf"\b(?:I|I'm|as an?|as the|being an?)\b{sentence}{{0,80}}?\b{_MADE}{either}",
        # my creators at OpenAI; my developer is Anthropic
        rf"\bmy (?:name|creator|maker|developer|owner|company|parent company|trainer)s?\b"
        rf"(?:,| is| are| was| were| at| from)*\s+(?:the )?{either}",
        # ChatGPT: Sure!  ChatGPT here.
        rf"\A\W*{either}(?:\s*:|\s+here\b)",
    )
    flags = re.IGNORECASE
    return re.compile(either, flags), tuple(re.compile(source, flags) for source in sources)


def _alternatives(names: Sequence[str]) -> str:
    # The longest first, with what follows in version numbers: GPT-4, Qwen2.5, Llama 3.
    ordered = sorted({name.strip() for name in names if name.strip()}, key=lambda n: (-len(n), n))
    either = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in ordered)
    return rf"(?<!\w)(?:{either})(?:[- ]?v?\d[\w.]*\w|[- ]?\d)?(?!\w)"
