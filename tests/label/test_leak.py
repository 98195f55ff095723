import time

import pytest

from tercet.label.leak import leaks, policy_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("I am ChatGPT, how can I help?", "ChatGPT"),
        ("I\u2019m Claude, made by Anthropic.", "Claude"),
        ("As an AI language model trained by OpenAI, I cannot do that.", "OpenAI"),
        ("I'm a large language model from Google.", "Google"),
        ("I was developed by the team at DeepSeek.", "DeepSeek"),
        ("My name is Qwen2.5.", "Qwen2.5"),
        ("As GPT-4, I have no opinion.", "GPT-4"),
        ("My creators at Anthropic say no.", "Anthropic"),
        ("You are talking to Bard.", "Bard"),
        ("**ChatGPT:** Sure!", "ChatGPT"),
        ("i am a virtual assistant called chatgpt", "chatgpt"),
    ],
)
def test_a_reply_that_says_what_it_is_leaks(text, name):
    assert name in leaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "OpenAI was founded in 2015.",
        "I think that Google is a search engine.",
        "I am a bard and I sing in taverns.",
        "I am a llama, said the llama.",
        "My star sign is Gemini.",
        "I am a helpful assistant.",
        "As Google grew, I moved to another search engine.",
        "The trousers were made by Apple pickers.",
        "Ask ChatGPT or Claude about it.",
        "",
    ],
)
def test_a_reply_that_speaks_of_others_does_not(text):
    assert leaks(text) == []


def test_further_names():
    assert leaks("I am acme-7b.", ["acme-7b"]) == ["acme-7b"]
    assert leaks("I was trained by Acme.", ["Acme"]) == ["Acme"]
    assert leaks("I am acme-7b.") == []


def test_each_name_is_told_once():
    assert leaks("I am ChatGPT. Yes, I am ChatGPT.") == ["ChatGPT"]


def test_names_of_policies():
    policies = ["runs/a/acme-7b", "acme-7b|sft", "human", "v2"]
    assert policy_names(policies) == ["acme-7b", "runs"]


def test_long_replies_are_read_quickly():
    text = "I am a language model of the team and by the OpenAI people " * 2000
    started = time.process_time()
    leaks(text)
    assert time.process_time() - started < 1.5
