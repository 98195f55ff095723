import json

import pytest

from tercet.label.markdown import BRACKETS, DEEPEST, LONGEST, tree


def text(value):
    return {"t": "text", "v": value}


def kinds(nodes):
    return {node["t"] for node in nodes} | {k for n in nodes for k in kinds(n.get("c", []))}


def words(nodes):
    """All text of a tree, in order."""
    return "".join(node.get("v", "") + words(node.get("c", [])) for node in nodes)


def test_every_kind_of_node():
    nodes = tree(
        "# T\n\n- a\n\n3. b\n\n> *c* **d** `e`\n\n```py\nf\n```\n---\n[g](http://h.example)\ni"
    )
    assert nodes == [
        {"t": "h", "c": [text("T")]},
        {"t": "ul", "c": [{"t": "li", "c": [{"t": "p", "c": [text("a")]}]}]},
        {"t": "ol", "c": [{"t": "li", "c": [{"t": "p", "c": [text("b")]}]}], "start": 3},
        {
            "t": "quote",
            "c": [
                {
                    "t": "p",
                    "c": [
                        {"t": "em", "c": [text("c")]},
                        text(" "),
                        {"t": "strong", "c": [text("d")]},
                        text(" "),
                        {"t": "code", "v": "e"},
                    ],
                }
            ],
        },
        {"t": "pre", "v": "f\n"},
        {"t": "hr"},
        {
            "t": "p",
            "c": [{"t": "link", "c": [text("g")], "v": "http://h.example"}, {"t": "br"}, text("i")],
        },
    ]


def test_html_is_text():
    html = "<img src=x onerror=alert(1)> <b>bold</b>"
    assert tree(html) == [{"t": "p", "c": [text(html)]}]
    assert tree("<script>\nalert(1)\n</script>")[0]["c"][0] == text("<script>")


def test_an_image_is_a_link_that_shows_its_address():
    [paragraph] = tree("![a cat](https://tracker.example/cat.png)")
    address = "https://tracker.example/cat.png"
    assert paragraph["c"] == [text("!"), {"t": "link", "c": [text("a cat")], "v": address}]


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "vbscript:x"])
def test_addresses_that_run_are_no_links(address):
    assert tree(f"[click]({address})") == [{"t": "p", "c": [text(f"[click]({address})")]}]


def test_link_definitions_stay_visible():
    assert words(tree("[a]: http://b.example\n\n[a]")) == "[a]: http://b.example[a]"


def test_line_breaks_are_kept():
    [paragraph] = tree("one\ntwo  \nthree")
    assert [node["t"] for node in paragraph["c"]] == ["text", "br", "text", "br", "text"]


@pytest.mark.parametrize(
    "whole",
    ["> " * DEEPEST + "deep", "x" * (LONGEST + 1), "[" * (BRACKETS + 1)],
    ids=["nested", "long", "brackets"],
)
def test_what_the_parser_cannot_do_is_shown_as_it_is(whole):
    assert tree(whole) == [{"t": "pre", "v": whole}]


def test_quotes_that_are_not_too_deep_keep_their_text():
    nodes = tree("> " * (DEEPEST - 5) + "deep")
    assert words(nodes) == "deep"
    assert kinds(nodes) == {"quote", "p", "text"}


def test_a_tree_is_json():
    nodes = tree("*a* [b](c) `d`\n\n- e")
    assert json.loads(json.dumps(nodes)) == nodes
